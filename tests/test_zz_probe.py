import asyncio, base64, gzip, zlib, json
import pytest, uvloop
from tests import worker
start = worker.start


BODY=b'{"name":"a"}'
def post(path=b"/v1/events", extra=b"", body=BODY, cl=True):
    return b"POST "+path+b" HTTP/1.1\r\nHost: x\r\n"+extra+(b"Content-Length: %d\r\n"%len(body) if cl else b"")+b"\r\n"+body

async def test_probe(start, caplog):
    client = await start(write_keys=("k",), max_body_bytes="100kB", max_event_bytes="50kB")
    K=b"X-Write-Key: k\r\n"
    big=gzip.compress(b" "*20_000_000)
    cases = {
      "ok": post(extra=K),
      "authlatin": post(extra=b"Authorization: Basic \xff\xfe\r\n"),
      "authlatin2": post(extra="Authorization: Basic é\r\n".encode()),
      "origin": post(extra=K+b"Origin: http://\xff\r\n"),
      "acrh": b"OPTIONS /v1/events HTTP/1.1\r\nHost: x\r\nOrigin: http://a\r\nAccess-Control-Request-Headers: \xff\r\n\r\n",
      "host": b"GET /v1/projects/a/settings HTTP/1.1\r\nHost: \xff\r\n\r\n",
      "path": b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
      "pathenc": b"GET /%ff%00 HTTP/1.1\r\nHost: x\r\n\r\n",
      "setpathenc": b"GET /v1/projects/%ff%ed%a0%80/settings HTTP/1.1\r\nHost: x\r\n\r\n",
      "setpathraw": b"GET /v1/projects/\xff/settings HTTP/1.1\r\nHost: x\r\n\r\n",
      "query": post(path=b"/v1/events?writeKey=%ff\xff"),
      "abs": post(path=b"http://x/v1/events", extra=K),
      "zstd": post(extra=K+b"Content-Encoding: zstd\r\nOrigin: http://a\r\n"),
      "br": post(extra=K+b"Content-Encoding: br\r\n", body=b"garbage"),
      "badgzip": post(extra=K+b"Content-Encoding: gzip\r\n", body=b"garbage garbage garbage"),
      "badgzip2": post(extra=K+b"Content-Encoding: gzip\r\n", body=gzip.compress(BODY*100)[:-20]),
      "badgzip3": post(extra=K+b"Content-Encoding: gzip\r\n", body=gzip.compress(BODY*100)[:20]+b"xxxxxxxxxx"),
      "badgzip4": post(extra=K+b"Content-Encoding: gzip\r\n", body=gzip.compress(BODY)[:-8]+b"xxxxxxxx"),
      "trunc4": post(extra=K+b"Content-Encoding: gzip\r\n", body=gzip.compress(BODY)[:-8]),
      "multi": post(extra=K+b"Content-Encoding: gzip\r\n", body=gzip.compress(BODY[:5])+gzip.compress(BODY[5:])),
      "multiun": post(extra=K, body=gzip.compress(BODY[:5])+gzip.compress(BODY[5:])),
      "multiun2": post(extra=K, body=gzip.compress(BODY)+gzip.compress(BODY)),
      "trail": post(extra=K+b"Content-Encoding: gzip\r\n", body=gzip.compress(BODY)+b"trailing"),
      "deflate": post(extra=K+b"Content-Encoding: deflate\r\n", body=zlib.compress(BODY)),
      "baddeflate": post(extra=K+b"Content-Encoding: deflate\r\n", body=zlib.compress(BODY)[:-5]),
      "bomb": post(extra=K+b"Content-Encoding: gzip\r\n", body=big),
      "bomb2": post(extra=K, body=big),
      "xgzip": post(extra=K+b"Content-Encoding: x-gzip\r\n", body=gzip.compress(BODY)),
      "expect": post(extra=K+b"Expect: 100-continue\r\n")[:-len(BODY)],
      "expectbad": post(extra=K+b"Expect: foo\r\n"),
      "connect": b"CONNECT a:443 HTTP/1.1\r\nHost: x\r\n\r\n",
      "trace": b"TRACE /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
      "head": b"HEAD /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
      "head2": b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n",
      "star": b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n",
      "upgrade": post(extra=K+b"Connection: upgrade\r\nUpgrade: websocket\r\n"),
      "http10": b"POST /v1/events HTTP/1.0\r\n"+K+b"Content-Length: 12\r\n\r\n"+BODY,
      "nohost": b"POST /v1/events HTTP/1.1\r\n"+K+b"Content-Length: 12\r\n\r\n"+BODY,
      "badcl": b"POST /v1/events HTTP/1.1\r\n"+K+b"Content-Length: abc\r\n\r\n"+BODY,
      "both": b"POST /v1/events HTTP/1.1\r\n"+K+b"Content-Length: 12\r\nTransfer-Encoding: chunked\r\n\r\n"+BODY,
      "badchunk": b"POST /v1/events HTTP/1.1\r\n"+K+b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"+BODY,
      "badchunk2": b"POST /v1/events HTTP/1.1\r\n"+K+b"Transfer-Encoding: chunked\r\n\r\n4\r\n{\"na\r\nzz\r\n"+BODY,
      "badver": b"POST /v1/events HTTP/9.1\r\n"+K+b"\r\n",
      "garbage": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
      "h2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
      "hugehdr": post(extra=b"X: "+b"a"*20000+b"\r\n"),
      "manyhdr": post(extra=b"".join(b"X%d: a\r\n"%i for i in range(1000))),
      "hugeurl": b"GET /"+b"a"*20000+b" HTTP/1.1\r\nHost: x\r\n\r\n",
      "nulhdr": post(extra=b"X: a\x00b\r\n"),
      "method": b"FOO /v1/events HTTP/1.1\r\nHost: x\r\n\r\n",
      "metget": b"POST /healthz HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n",
      "badurl": b"GET http://[::1 HTTP/1.1\r\nHost: x\r\n\r\n",
      "badurl2": b"GET //[ HTTP/1.1\r\nHost: x\r\n\r\n",
      "badurl3": b"GET //a:99999999/ HTTP/1.1\r\nHost: x\r\n\r\n",
      "badurl4": post(path=b"http://a:b/v1/events", extra=K),
    }
    for name, sent in cases.items():
        n=len(caplog.records)
        async with await client.raw() as raw:
            out=[]
            try:
                await raw.send(sent)
                while True:
                    a = await raw.answer(1.5)
                    out.append((a.status, a.body[:130], {k:v for k,v in a.headers.items() if k not in("content-length","date","server","content-type")}))
            except TimeoutError: out.append("open")
            except Exception as e: out.append(repr(e)[:100])
            print(name, *out, [ (r.levelname, r.getMessage()[:80], repr(r.exc_info[1])[:100] if r.exc_info else None) for r in caplog.records[n:]], sep="\n    ")
