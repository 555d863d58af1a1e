"""Device, browser and system: tables of examples seen in the wild, and the property that no text raises."""

from __future__ import annotations

import asyncpg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.events.values import user_agents
from ingest.events.values.user_agents import NO_DEVICE, Device, describe_user_agent

APPLE = "AppleWebKit/605.1.15 (KHTML, like Gecko)"
BLINK = "AppleWebKit/537.36 (KHTML, like Gecko)"
WINDOWS = f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Chrome/138.0.0.0 Safari/537.36"
MAC = "Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7)"
IPHONE = f"Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) {APPLE}"
ANDROID = f"Mozilla/5.0 (Linux; Android 10; K) {BLINK}"
WEBVIEW = f"{BLINK} Version/4.0 Chrome/138.0.7204.63 Mobile Safari/537.36"

DESKTOPS = [
    (WINDOWS, "Chrome", "Windows"),
    (f"{MAC} {BLINK} Chrome/138.0.0.0 Safari/537.36", "Chrome", "Mac OS X"),
    (f"Mozilla/5.0 (X11; Linux x86_64) {BLINK} Chrome/138.0.0.0 Safari/537.36", "Chrome", "Linux"),
    (f"Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) {BLINK} Chrome/138.0.0.0 Safari/537.36", "Chrome", "Chrome OS"),
    (f"{WINDOWS} Edg/138.0.3351.83", "Edge", "Windows"),
    (f"{WINDOWS} OPR/120.0.0.0", "Opera", "Windows"),
    (f"{WINDOWS} Vivaldi/7.5.3735.44", "Vivaldi", "Windows"),
    ("Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox", "Windows"),
    ("Mozilla/5.0 (X11; Ubuntu; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0", "Firefox", "Ubuntu"),
    (f"{MAC} {APPLE} Version/18.5 Safari/605.1.15", "Safari", "Mac OS X"),
    ("Mozilla/5.0 (Windows NT 10.0; WOW64; Trident/7.0; Tablet PC 2.0; rv:11.0) like Gecko", "IE", "Windows"),
    (
        f"Mozilla/5.0 (Windows NT 10.0; Win64; x64) {BLINK} Slack/4.44.65 Chrome/134.0.6998.205 "
        "Electron/35.2.1 Safari/537.36",
        "Electron",
        "Windows",
    ),
]
PHONES = [
    (f"{ANDROID} Chrome/138.0.0.0 Mobile Safari/537.36", "Chrome Mobile", "Android"),
    (f"{ANDROID} SamsungBrowser/28.0 Chrome/130.0.0.0 Mobile Safari/537.36", "Samsung Internet", "Android"),
    (f"{ANDROID} Chrome/138.0.0.0 Mobile Safari/537.36 EdgA/138.0.0.0", "Edge Mobile", "Android"),
    (f"{ANDROID} Chrome/137.0.0.0 Mobile Safari/537.36 OPR/90.0.0.0", "Opera Mobile", "Android"),
    ("Mozilla/5.0 (Android 15; Mobile; rv:140.0) Gecko/140.0 Firefox/140.0", "Firefox Mobile", "Android"),
    (f"{IPHONE} Version/18.5 Mobile/15E148 Safari/604.1", "Mobile Safari", "iOS"),
    (f"{IPHONE} CriOS/138.0.7204.119 Mobile/15E148 Safari/604.1", "Chrome Mobile iOS", "iOS"),
    (f"{IPHONE} FxiOS/140.0 Mobile/15E148 Safari/605.1.15", "Firefox iOS", "iOS"),
    (f"{IPHONE} Mobile/15E148 Instagram 387.0.0.25.75 (iPhone15,3; iOS 18_5; en_AU)", "Instagram", "iOS"),
    (
        f"{IPHONE} Mobile/15E148 [FBAN/FBIOS;FBAV/520.0.0.38.101;FBDV/iPhone14,5;FBSV/18.5;FBID/phone;FBOP/5]",
        "Facebook",
        "iOS",
    ),
    (
        f"Mozilla/5.0 (Linux; Android 15; SM-S921B Build/AP3A.240905.015.A2; wv) {WEBVIEW} "
        "Instagram 387.0.0.31.83 Android (35/15; 450dpi; 1080x2109; samsung; SM-S921B; e1s; s5e9945; en_AU)",
        "Instagram",
        "Android",
    ),
    (
        f"Mozilla/5.0 (Linux; Android 13; M2101K6G Build/TKQ1.221013.002; wv) {WEBVIEW} WhatsApp/2.25.18.80",
        "WhatsApp",
        "Android",
    ),
    (
        f"Mozilla/5.0 (Linux; Android 13; CUBOT P80) {BLINK} Chrome/138.0.0.0 Mobile Safari/537.36",
        "Chrome Mobile",
        "Android",
    ),
    (
        "Opera/9.80 (J2ME/MIDP; Opera Mini/7.1.32052/29.3709; U; en) Presto/2.8.119 Version/11.10",
        "Opera Mini",
        None,
    ),
    (
        "Mozilla/5.0 (Mobile; Nokia_8110_4G; rv:48.0) Gecko/48.0 Firefox/48.0 KAIOS/2.5.1",
        "Firefox Mobile",
        "KaiOS",
    ),
    ("Dalvik/2.1.0 (Linux; U; Android 14; SM-A546B Build/UP1A.231005.007)", "Android", "Android"),
    ("Shop/42 CFNetwork/3826.500.131 Darwin/24.5.0", "Shop", "iOS"),
]
TABLETS = [
    (
        f"Mozilla/5.0 (iPad; CPU OS 17_7 like Mac OS X) {APPLE} Version/18.4 Mobile/15E148 Safari/604.1",
        "Mobile Safari",
        "iOS",
    ),
    (f"{ANDROID} Chrome/138.0.0.0 Safari/537.36", "Chrome", "Android"),
    (
        f"Mozilla/5.0 (Linux; Android 14; SM-X710) {BLINK} SamsungBrowser/28.0 Chrome/130.0.0.0 Safari/537.36",
        "Samsung Internet",
        "Android",
    ),
    ("Mozilla/5.0 (Android 14; Tablet; rv:140.0) Gecko/140.0 Firefox/140.0", "Firefox Mobile", "Android"),
    (
        f"Mozilla/5.0 (Linux; Android 11; KFTRWI) {BLINK} Silk/138.2.1 like Chrome/138.0.7204.63 Safari/537.36",
        "Amazon Silk",
        "Android",
    ),
]
BOTS = [
    ("Mozilla/5.0 (compatible; Googlebot/2.1; +http://www.google.com/bot.html)", "Googlebot", None),
    (
        f"Mozilla/5.0 (Linux; Android 6.0.1; Nexus 5X Build/MMB29P) {BLINK} Chrome/138.0.0.0 Mobile Safari/537.36 "
        "(compatible; Googlebot/2.1; +http://www.google.com/bot.html)",
        "Googlebot",
        "Android",
    ),
    (
        "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; bingbot/2.0; "
        "+http://www.bing.com/bingbot.htm) Chrome/116.0.1938.76 Safari/537.36",
        "bingbot",
        None,
    ),
    (
        "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; GPTBot/1.2; +https://openai.com/gptbot)",
        "GPTBot",
        None,
    ),
    ("Mozilla/5.0 (compatible; YandexBot/3.0; +http://yandex.com/bots)", "YandexBot", None),
    ("Mozilla/5.0 (compatible; Bytespider; spider-feedback@bytedance.com)", "Bytespider", None),
    (
        "facebookexternalhit/1.1 (+http://www.facebook.com/externalhit_uatext.php)",
        "FacebookBot",
        None,
    ),
    ("Twitterbot/1.0", "Twitterbot", None),
    (
        "LinkedInBot/1.0 (compatible; Mozilla/5.0; Apache-HttpClient +http://www.linkedin.com)",
        "LinkedInBot",
        None,
    ),
    ("WhatsApp/2.23.20.0 A", "WhatsApp", None),  # the preview of a link, not the browser inside the app
    (WINDOWS.replace("Chrome/", "HeadlessChrome/"), "HeadlessChrome", "Windows"),
    (
        f"{ANDROID} Chrome/136.0.0.0 Mobile Safari/537.36 Chrome-Lighthouse",
        "Chrome Mobile",
        "Android",
    ),
    (f"Mozilla/5.0 (linux) {BLINK} jsdom/26.1.0", None, "Linux"),
    ("ELB-HealthChecker/2.0", None, None),
    ("kube-probe/1.30", None, None),
]
OTHERS = [
    (
        f"Mozilla/5.0 (SMART-TV; LINUX; Tizen 8.0) {BLINK} 120.0.6099.5/8.0 TV Safari/537.36",
        "Safari",
        "Tizen",
    ),
    (f"Mozilla/5.0 (Web0S; Linux/SmartTV) {BLINK} Chrome/108.0.5359.211 Safari/537.36", "Chrome", "Web0S"),
    (
        f"Mozilla/5.0 (Linux; Android 9; AFTKA) {BLINK} Silk/138.2.1 like Chrome/138.0.7204.63 Safari/537.36",
        "Amazon Silk",
        "Android",
    ),
    (f"Mozilla/5.0 (PlayStation; PlayStation 5/9.00) {APPLE} Version/15.4 Safari/605.1.15", "Safari", None),
    ("curl/8.7.1", "curl", None),
    ("okhttp/4.12.0", "okhttp", None),
    ("python-requests/2.32.3", "Python Requests", None),
    ("Python/3.12 aiohttp/3.11.18", "Python aiohttp", None),
    ("Python-urllib/3.12", "Python-urllib", None),
    ("Java/17.0.9", "Java", None),
    ("Go-http-client/2.0", "Go-http-client", None),
    ("analytics-python/2.4.0", None, None),
    ("@segment/analytics-node/3.1.0", None, None),
    ("analytics-node/3.1.0", None, None),
    ("node", None, None),
    ("Mozilla/5.0", None, None),
    ("-", None, None),
]
USER_AGENTS = [
    pytest.param(user_agent, Device(device_type, browser, system), id=f"{device_type} {user_agent[-40:]}")
    for device_type, rows in (
        ("desktop", DESKTOPS),
        ("mobile", PHONES),
        ("tablet", TABLETS),
        ("bot", BOTS),
        ("other", OTHERS),
    )
    for user_agent, browser, system in rows
]


def check_text(text: str | None) -> None:
    if text is not None:
        assert text
        assert "\x00" not in text
        text.encode()  # a lone surrogate raises


ANY_TEXT = st.text(st.characters(exclude_categories=()), max_size=300) | st.text("\x00\ud800\udfffé%", max_size=40)


class TestUserAgent:
    @pytest.mark.parametrize(("user_agent", "device"), USER_AGENTS)
    def test_is_described(self, user_agent: str, device: Device) -> None:
        assert describe_user_agent(user_agent) == device

    @pytest.mark.parametrize("empty", ["", "  ", "\t\n"])
    def test_an_empty_one_says_nothing(self, empty: str) -> None:
        assert describe_user_agent(empty) == NO_DEVICE

    def test_of_a_long_one_the_beginning_is_read(self, monkeypatch: pytest.MonkeyPatch) -> None:
        assert describe_user_agent(WINDOWS + " x" * 10_000) == Device("desktop", "Chrome", "Windows")
        assert describe_user_agent("x" * 512 + "Googlebot") == Device("other", None, None)
        seen: list[int] = []

        def read(user_agent: str) -> Device:
            seen.append(len(user_agent))
            return NO_DEVICE

        monkeypatch.setattr(user_agents, "_read_device", read)
        for length in (1, 511, 512, 513, 100_000):
            describe_user_agent("y" * length)
        assert seen == [1, 511, 512, 512, 512]

    @settings(deadline=None)  # the first one compiles the patterns
    @given(ANY_TEXT | ANY_TEXT.map(lambda text: f"{text} CFNetwork/1 Darwin/24.5 {text}"))
    def test_no_text_raises(self, user_agent: str) -> None:
        device = describe_user_agent(user_agent)
        assert device.device_type in {"desktop", "mobile", "tablet", "bot", "other", None}
        check_text(device.browser)
        check_text(device.os)


CRAWLERS = [
    "GoogleOther",
    "Mozilla/5.0 (compatible; GoogleOther)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; ClaudeBot/1.0; +claudebot@anthropic.com)",
    "Mozilla/5.0 AppleWebKit/537.36 (KHTML, like Gecko; compatible; ChatGPT-User/1.0; +https://openai.com/bot)",
    "Mozilla/5.0 (compatible; OAI-SearchBot/1.0)",
    "Mozilla/5.0 (compatible; Claude-User/1.0)",
    "meta-externalagent/1.1 (+https://developers.facebook.com/docs/sharing/webmasters/crawler)",
    "PerplexityBot/1.0",
    "Mozilla/5.0 (compatible; Perplexity-User/1.0)",
    "CCBot/2.0 (https://commoncrawl.org/faq/)",
    "Amazonbot/0.1",
    "Applebot/0.1",
    "Mozilla/5.0 (compatible; Yahoo! Slurp; http://help.yahoo.com)",
    "Baiduspider+(+http://www.baidu.com)",
    "ia_archiver",
    "Mozilla/5.0+(compatible; UptimeRobot/2.0; http://www.uptimerobot.com/)",
    "Pingdom.com_bot_version_1.4",
    "AdsBot-Google (+http://www.google.com/adsbot.html)",
    "Mediapartners-Google",
    "APIs-Google (+https://developers.google.com)",
    "Google-InspectionTool/1.0",
    "Google-Read-Aloud",
    "Slackbot-LinkExpanding 1.0",
    "Discordbot/2.0",
    "TelegramBot (like TwitterBot)",
    "Screaming Frog SEO Spider/20.0",
    "Mozilla/5.0 zgrab/0.x",
    "DuckAssistBot/1.2",
    "anthropic-ai",
    "cohere-ai",
    "SemrushBot",
    "archive.org_bot",
    "Datadog/Synthetics",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/120.0 Safari/537.36 PTST/231018",
    "Sogou web spider/4.0",
    "YandexImages/3.0",
    "Google-CloudVertexBot",
    "Bytespider",
    "MistralAI-User/1.0",
    "StatusCake",
    "python crawler/1",
    "facebookcatalog/1.0",
    "Prerender (+https://github.com/prerender/prerender)",
]
PEOPLE = [
    "Botswana/1",
    "fan of Robots.txt",
    "Robotics Browser",
    "Abbott/1",
    "Talbot/2",
    "Mozilla/5.0 (Linux; Android 13; CUBOT P80) AppleWebKit/537.36 Chrome/138.0.0.0 Mobile Safari/537.36",
    "Bottega/1",
    "Spiderman/1",
    "Silky Browser",
    "Mozilla/5.0 (Linux; Android 11; KFTRWI) AppleWebKit/537.36 (KHTML, like Gecko) S"
    "ilk/138.2.1 like Chrome/138.0.7204.63 Safari/537.36",
    "Borgward/1",
    "Mozilla/5.0 (Windows NT 10.0) WordPressDesktop/8.0",
    "Zeal/0.7",
    "Mozilla/5.0 (iPhone; CPU iPhone OS 18_5 like Mac OS X) AppleWebKit/605.1.15 (KHT"
    "ML, like Gecko) Mobile/15E148 GSA/1",
    "ReaperApp/1",
    "Charlotte/1",
    "Crawley Town/2",
    "Mozilla/5.0 (compatible; MSIE 10.0; Windows NT 6.2; Trident/6.0)",
]


@pytest.mark.parametrize("user_agent", CRAWLERS)
def test_crawlers_monitors_and_previews_are_bots(user_agent: str) -> None:
    assert describe_user_agent(user_agent).device_type == "bot"


@pytest.mark.parametrize("user_agent", PEOPLE)
def test_names_that_only_sound_like_bots_are_not_bots(user_agent: str) -> None:
    assert describe_user_agent(user_agent).device_type != "bot"


async def test_the_database_knows_the_same_bots(connection: asyncpg.Connection) -> None:
    known = [text for text, *_ in [*BOTS, *DESKTOPS, *PHONES, *TABLETS, *OTHERS]]
    for text in [*known, *CRAWLERS, *PEOPLE]:
        found = await connection.fetchval("SELECT ingest.device_of($1)::text", text)
        assert (found == "bot") == (describe_user_agent(text).device_type == "bot"), text
