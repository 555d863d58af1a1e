-- A script for wrk: sends prepared requests with new message ids and the time filled in, counts accepted events.
-- After the given seconds no connection sends any more, so that the last answers arrive before wrk ends.
-- Arguments: the file of requests (see load.py), the number of this run (0 to 4095), seconds.

local ffi = require("ffi")
ffi.cdef [[
  struct clock_time { long seconds; long nanoseconds; };
  int clock_gettime(int clock, struct clock_time *time);
]]
local CLOCK_MONOTONIC = 1
local REST_MS = 3600 * 1000
local BACK_OFF_MS = 100
local time = ffi.new("struct clock_time")

local function now()
  ffi.C.clock_gettime(CLOCK_MONOTONIC, time)
  return tonumber(time.seconds) + tonumber(time.nanoseconds) / 1e9
end

-- In the main thread's state.
local threads = {}

function setup(thread)
  thread:set("number", #threads)
  table.insert(threads, thread)
end

-- In each thread's own state from here on. Globals, so that `done` can read them.
sent, answered, accepted, refused, first, last = 0, 0, 0, 0, 0, 0
local templates = {}
local run, seconds, current, to_back_off, tried = 0, 0, 0, 0, false

-- A request as a list of texts, and which of them are the ids and the times.
local function read_template(text)
  local template = { texts = {}, ids = {}, times = {} }
  local position = 1
  while true do
    local mark = text:find("[\1\2]", position)
    table.insert(template.texts, text:sub(position, (mark or 0) - 1))
    if not mark then return template end
    table.insert(template.texts, "")
    table.insert(text:byte(mark) == 1 and template.ids or template.times, #template.texts)
    position = mark + 1
  end
end

function init(args)
  for line in io.open(args[1], "rb"):read("*a"):gmatch("[^\30]+") do
    table.insert(templates, read_template(line))
  end
  run, seconds = tonumber(args[2]) * 16 + number, tonumber(args[3])
end

function request()
  if not tried and number == 0 then
    -- wrk asks the first thread once, before it connects, whether it pipelines.
    tried = true
    return "GET / HTTP/1.1\r\n\r\n"
  end
  if first == 0 then first = now() end
  current = current % #templates + 1
  local template = templates[current]
  local id = string.format("%08x-%04x", sent, run)
  local second = os.date("!%Y-%m-%dT%H:%M:%S")
  local texts = template.texts
  for _, place in ipairs(template.ids) do texts[place] = id end
  for _, place in ipairs(template.times) do texts[place] = second end
  sent = sent + 1
  return table.concat(texts)
end

function delay()
  -- wrk asks before the first request, too.
  if first > 0 and now() - first >= seconds then return REST_MS end
  if to_back_off > 0 then
    to_back_off = to_back_off - 1
    return BACK_OFF_MS
  end
  return 0
end

function response(status, headers, body)
  answered = answered + 1
  last = now()
  if status == 200 then
    accepted = accepted + tonumber(body:match('"accepted":(%d+)'))
  else
    refused = refused + 1
    to_back_off = to_back_off + 1
  end
end

-- In the main thread again.
function done(summary, latency, requests)
  local totals = { sent = 0, answered = 0, accepted = 0, refused = 0 }
  local from, to = math.huge, 0
  for _, thread in ipairs(threads) do
    for name, total in pairs(totals) do totals[name] = total + thread:get(name) end
    from, to = math.min(from, thread:get("first")), math.max(to, thread:get("last"))
  end
  local errors = summary.errors
  io.write(string.format(
    '\nRESULT {"sent":%d,"answered":%d,"accepted":%d,"refused":%d,"first":%.6f,"last":%.6f,"errors":%d}\n',
    totals.sent, totals.answered, totals.accepted, totals.refused, from, to,
    errors.connect + errors.read + errors.write))
end
