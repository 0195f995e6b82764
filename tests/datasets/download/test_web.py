"""The client against a server that drops, truncates, refuses, delays and redirects; what it sees is counted there."""

import itertools
import threading
import time
from dataclasses import replace
from email.utils import formatdate

import pytest

from skyshift.datasets.tng_connections import Politeness, ServiceError, StopError
from skyshift.datasets.tng_key import Key
from skyshift.datasets.tng_partial import DamagedError, Partial
from skyshift.datasets.tng_web import CHUNK, Web, find_base_url
from skyshift.errors import SkyshiftError

CUTOUT = "TNG100-1/snapshots/50/subhalos/3/cutout.hdf5"
QUERY = {"gas": "Coordinates,Masses,Density"}


def nothing(path):
    """A check that finds nothing wrong."""


def fetch(web, part, query=None, check=nothing):
    web.file(CUTOUT, query or QUERY, part, check)
    return part.read_bytes()


@pytest.fixture
def big(service):
    """A file of several chunks: the fixture's galaxy with 9,000 cells."""
    service.add(3, gas=9000)
    body = service.cutout(3, QUERY)
    assert len(body) > 4 * CHUNK
    return body


# retries


@pytest.mark.parametrize("what", ["drop", "408", "429", "500", "502", "503", "504", "html", "garbage"])
def test_what_passes_is_tried_again(web, service, faults, what):
    """Two bad answers and a good one: three requests, and the right answer."""
    action = {
        "drop": faults.drop,
        "html": faults.status(200, "<html>Log in</html>", Content_Type="text/html"),
        "garbage": faults.truncate(7),
    }.get(what) or faults.status(int(what))
    service.misbehave("subhalos/3/", [action, action])
    assert web.json("TNG100-1/snapshots/50/subhalos/3/") == service.entries[3]
    assert len(service.requests("subhalos/3/")) == 3
    assert web.retries == 2


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("drop", "ProtocolError"),
        ("503", r"HTTP 503 \(Service Unavailable\)"),
        ("html", "text/html instead of JSON; is base_url the address of the API"),
        ("slow", "ReadTimeoutError"),
    ],
)
def test_after_so_many_tries_it_is_given_up_with_the_reason(service, faults, quick, fault, words):
    action = {
        "drop": faults.drop,
        "503": faults.status(503),
        "html": faults.status(200, "<html>", Content_Type="text/html"),
        "slow": faults.slow(0.6),
    }[fault]
    service.misbehave("TNG100-1/", itertools.repeat(action))
    with (
        Web(service.url, Key(service.key), replace(quick, read_timeout=0.15)) as web,
        pytest.raises(ServiceError, match=rf"TNG100-1/: .*({words}).*; tried 4 times"),
    ):
        web.json("TNG100-1/")
    assert len(service.requests("TNG100-1/")) == quick.attempts == 4


def test_a_server_that_is_not_there(service, quick):
    service.close()
    with (
        Web(service.url, Key("k"), quick) as web,
        pytest.raises(ServiceError, match=r"NewConnectionError.*; tried 4 times"),
    ):
        web.json("TNG100-1/")


def test_a_server_that_does_not_speak_tls_is_not_asked_twice(service, quick):
    with (
        Web(service.url.replace("http", "https"), Key("k"), quick) as web,
        pytest.raises(ServiceError, match=r"no safe connection to 127\.0\.0\.1: .*(SSL|ssl)"),
    ):
        web.json("TNG100-1/")
    assert web.retries == 0


def test_the_wait_doubles_and_is_shortened_at_random(service, faults, quick):
    """Between requests k and k+1 lie backoff 2^k times 0.5 to 1, and what the request itself takes (some ms)."""
    service.misbehave("TNG100-1/", [faults.status(500)] * 3)
    with Web(service.url, Key(service.key), replace(quick, backoff=0.2)) as web:
        web.json("TNG100-1/")
    times = [seen.time for seen in service.requests("TNG100-1/")]
    waits = [later - earlier for earlier, later in itertools.pairwise(times)]
    for wait, longest in zip(waits, (0.2, 0.4, 0.8), strict=True):
        assert 0.5 * longest < wait < longest + 0.2  # the last: for a machine that is busy otherwise


@pytest.mark.parametrize("form", ["seconds", "date"])
def test_retry_after_is_obeyed_by_all_connections(service, faults, quick, form):
    """While one request is told to wait 1 s, another thread's request waits as well."""
    after = "1" if form == "seconds" else formatdate(time.time() + 2, usegmt=True)  # whole seconds: 1 to 2 from now
    service.misbehave("subhalos/1/", [faults.status(429, Retry_After=after)])
    with Web(service.url, Key(service.key), replace(quick, longest_wait=5.0)) as web:
        thread = threading.Thread(target=web.json, args=("TNG100-1/snapshots/50/subhalos/1/",))
        thread.start()
        while not (service.requests("subhalos/1/") and service.requests("subhalos/1/")[0].status):
            time.sleep(0.005)
        time.sleep(0.1)  # the answer arrives
        web.json("TNG100-1/snapshots/50/subhalos/2/")
        thread.join()
    told, again = (seen.time for seen in service.requests("subhalos/1/"))
    (other,) = (seen.time for seen in service.requests("subhalos/2/"))
    assert min(again, other) - told >= 0.99


def test_a_wait_that_is_too_long_is_not_waited(web, service, faults):
    service.misbehave("TNG100-1/", [faults.status(429, Retry_After="3600")])
    start = time.monotonic()
    with pytest.raises(ServiceError, match=r"HTTP 429 \(Too Many Requests\), to be tried again after 3600 s"):
        web.json("TNG100-1/")
    assert time.monotonic() - start < 1.0
    assert len(service.seen) == 1


@pytest.mark.parametrize("code", [400, 404, 410, 418])
def test_what_does_not_pass_is_not_tried_again(web, service, faults, code):
    service.misbehave("TNG100-1/", [faults.status(code, "no such thing, " + service.key)])
    with pytest.raises(ServiceError, match=rf"HTTP {code} \(.*\): no such thing, \(key\)") as caught:
        web.json("TNG100-1/")
    assert caught.value.status == code
    assert not isinstance(caught.value, StopError)
    assert service.key not in str(caught.value)
    assert len(service.seen) == 1


@pytest.mark.parametrize("code", [401, 403])
def test_a_refused_key_stops_everything_with_the_cure(service, quick, faults, code):
    service.misbehave("TNG100-1/", [faults.status(code, "bad key " + service.key)])
    with (
        Web(service.url, Key("wrong"), quick) as web,
        pytest.raises(StopError, match=rf"127.0.0.1 refuses the key \(HTTP {code}\); compare it with .*users/profile"),
    ):
        web.json("TNG100-1/")
    assert len(service.seen) == 1


# downloads


@pytest.mark.parametrize("ranges", [True, False])
def test_a_body_that_is_cut_off_three_times(web, service, faults, big, tmp_path, ranges):
    """The bytes are right in the end; where the service allows it, no chunk that has come is sent twice."""
    service.ranges = ranges
    service.misbehave("3/cutout.hdf5", [faults.truncate(CHUNK + 5000)] * 3)
    assert fetch(web, tmp_path / "part") == big
    asked = service.requests("3/cutout.hdf5")
    starts = [seen.headers.get("range", "bytes=0-") for seen in asked]
    sent = sum(seen.sent for seen in asked)
    if ranges:
        assert starts == [f"bytes={k * CHUNK}-" for k in range(4)]
        assert len(big) <= sent <= len(big) + 3 * CHUNK  # a piece of a chunk is lost with each cut
    else:
        assert starts == ["bytes=0-"] * 4
        assert sent == len(big) + 3 * (CHUNK + 5000)
    assert [path.name for path in tmp_path.iterdir()] == ["part"]


def test_another_client_goes_on_where_one_stopped(service, quick, faults, big, tmp_path):
    """As after a killed process: the part and the note beside it are all that is left."""
    part = tmp_path / "part"
    service.misbehave("3/cutout.hdf5", [faults.truncate(2 * CHUNK)] + [faults.status(500)] * 3)
    with (
        Web(service.url, Key(service.key), quick) as web,
        pytest.raises(ServiceError, match=r"HTTP 500.*tried 4 times"),
    ):
        fetch(web, part)
    held = part.read_bytes()  # two chunks, but for what was on its way when the connection was reset
    assert held
    assert big[: 2 * CHUNK].startswith(held)
    with Web(service.url, Key(service.key), quick) as web:
        assert fetch(web, part) == big
    assert service.seen[-1].headers["range"] == f"bytes={len(held)}-"
    assert service.seen[-1].sent == len(big) - len(held)


def test_bytes_of_two_versions_are_never_joined(web, service, faults, big, tmp_path):
    """The file changes between the cut and the rest: the whole of the new one is taken."""

    def change(handler):
        service.version = "2"
        service.add(3, gas=9001)
        service._files.clear()

    service.misbehave("3/cutout.hdf5", [faults.truncate(CHUNK), change])
    body = fetch(web, tmp_path / "part")
    assert body == service.cutout(3, QUERY) != big
    assert service.seen[-1].headers["range"] == f"bytes={CHUNK}-"
    assert service.seen[-1].status == 200


def test_bytes_of_an_older_download_are_gone_before_the_new_note_stands(tmp_path):
    """Whatever moment the process is killed at: after ``begin`` there is a note, and no byte beside it."""
    part = tmp_path / "part"
    part.write_bytes(b"of the old version")
    Partial(part, "url").begin({"Content-Length": "100", "Accept-Ranges": "bytes", "ETag": '"new"'})
    assert not part.exists()
    part.write_bytes(b"new")
    assert Partial(part, "url").headers() == {"Range": "bytes=3-", "If-Range": '"new"'}
    for mark in ({"ETag": 'W/"weak"'}, {}):
        Partial(part, "url").begin({"Content-Length": "100", "Accept-Ranges": "bytes", **mark})
        part.write_bytes(b"new")
        assert Partial(part, "url").headers() == {}


@pytest.mark.parametrize("fault", ["416", "wrong range"])
def test_a_rest_that_cannot_be_had_begins_anew(web, service, faults, big, tmp_path, fault):
    def shifted(handler):
        handler.send_body(b"x" * (len(big) - CHUNK), {"Content-Range": f"bytes 7-{len(big) - 1}/{len(big)}"}, 206)
        return True

    action = faults.status(416) if fault == "416" else shifted
    service.misbehave("3/cutout.hdf5", [faults.truncate(CHUNK), action])
    assert fetch(web, tmp_path / "part") == big
    assert "range" not in service.seen[-1].headers


def test_other_fields_are_another_file(web, service, faults, big, tmp_path):
    """A part of a download of other fields is not continued."""
    service.misbehave("3/cutout.hdf5", [faults.truncate(CHUNK)] + [faults.status(500)] * 3)
    with pytest.raises(ServiceError):
        fetch(web, tmp_path / "part")
    other = {"gas": "Coordinates,Masses"}
    assert fetch(web, tmp_path / "part", other) == service.cutout(3, other)
    assert "range" not in service.seen[-1].headers


def test_a_damaged_file_is_fetched_anew_and_given_up_in_the_end(web, service, tmp_path):
    found = iter(["bad", "worse", ""])

    def check(path):
        if reason := next(found, "hopeless"):
            raise DamagedError(f"it is {reason}")

    assert fetch(web, tmp_path / "part", check=check) == service.cutout(3, QUERY)
    assert len(service.seen) == 3
    with pytest.raises(ServiceError, match="it is hopeless; tried 4 times"):
        fetch(web, tmp_path / "part", check=check)
    assert not list(tmp_path.iterdir())


# the key goes to one place


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
def test_the_key_does_not_follow_a_redirect_to_another_port(web, service, new_service, faults, tmp_path, code):
    """As the real service does, to a data server with a token of its own in the address."""
    data = new_service()
    data.guarded = False
    data.add(3)
    service.misbehave("3/cutout.hdf5", [faults.redirect(data.url, code)])
    assert fetch(web, tmp_path / "part") == service.cutout(3, QUERY)
    (seen,) = data.seen
    assert seen.query["token"] == "secret-of-the-data-server"
    assert "api-key" not in seen.headers
    assert service.key not in str(seen)
    assert service.seen[0].headers["api-key"] == service.key


def test_a_cut_download_from_a_data_server_goes_on(web, service, new_service, faults, big, tmp_path):
    """The token is in no note beside the part: the service gives a new one."""
    data = new_service()
    data.guarded = False
    data.add(3, gas=9000)
    service.misbehave("3/cutout.hdf5", itertools.repeat(faults.redirect(data.url)))
    data.misbehave("3/cutout.hdf5", [faults.truncate(CHUNK)] + [faults.status(500)] * 3)
    with pytest.raises(ServiceError):
        fetch(web, tmp_path / "part")
    for path in tmp_path.iterdir():
        assert b"secret-of-the-data-server" not in path.read_bytes()
    assert fetch(web, tmp_path / "part") == big
    assert data.seen[-1].sent == len(big) - CHUNK
    assert not any("api-key" in seen.headers for seen in data.seen)


def test_a_data_server_that_wants_the_key_is_named_with_the_cure(service, new_service, faults, quick, tmp_path):
    """Named in key_hosts it gets the key, but never over plain http."""
    data = new_service()
    service.misbehave("3/cutout.hdf5", itertools.repeat(faults.redirect(data.url)))
    for hosts in ((), ("127.0.0.1",)):
        with (
            Web(service.url, Key(service.key), quick, key_hosts=hosts) as web,
            pytest.raises(
                StopError, match=r"HTTP 403 to a request without the key.*key_hosts: \[127.0.0.1\]"
            ) as caught,
        ):
            fetch(web, tmp_path / "part")
        assert "secret-of-the-data-server" not in str(caught.value)
    assert not any("api-key" in seen.headers for seen in data.seen)
    with Web("https://tng.example/api", Key("k"), key_hosts=["Data.example"]) as web:
        may = {host: web._may_see_key(host) for host in (
            ("https", "tng.example", 443), ("https", "data.example", 443), ("http", "data.example", 80),
            ("http", "tng.example", 80), ("https", "tng.example", 8443), ("https", "sub.tng.example", 443),
        )}  # fmt: skip
    assert list(may.values()) == [True, True, False, False, False, False]


def test_a_redirect_to_plain_http_or_in_circles(web, service, faults):
    service.misbehave("TNG100-1/", [faults.redirect("http://data.invalid/file")])
    with pytest.raises(
        ServiceError, match=r"a redirect leads to http://data\.invalid, where everyone on the way"
    ) as caught:
        web.json("TNG100-1/")
    assert "secret" not in str(caught.value)
    service.misbehave("TNG100-1/", itertools.repeat(faults.redirect(service.url)))
    with pytest.raises(ServiceError, match="more than 5 redirects"):
        web.json("TNG100-1/")


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://www.tng-project.org/api/", "base_url leads to http://www.tng-project.org, .*use https://.*allow_http"),
        ("ftp://tng.example/api", "does not begin with https://"),
        ("www.tng-project.org/api", "does not begin with https://"),
        ("", "does not begin with https://"),
        ("https://", "does not begin with https://"),
        ("https://name:password@tng.example/api", "no name or password"),
        ("https://tng.example/api?api-key=abc", "no '\\?'"),
    ],
)
def test_addresses_that_are_refused_before_anything_is_sent(url, words):
    with pytest.raises(ServiceError, match=words) as caught:
        Web(url, Key("k"))
    assert "password@" not in str(caught.value)
    assert "abc" not in str(caught.value)


def test_the_systems_proxy_is_used_and_does_not_see_the_key(service, quick, monkeypatch):
    """It is asked for a tunnel to the service, with its own password and without the key."""
    monkeypatch.setenv("https_proxy", f"http://name:word@127.0.0.1:{service.port}")
    monkeypatch.delenv("no_proxy", raising=False)
    with (
        Web("https://tng.example/api", Key(service.key), quick) as web,
        pytest.raises(ServiceError, match="ProxyError"),
    ):
        web.json("TNG100-1/")
    assert {seen.path for seen in service.seen} == {"tng.example:443"}
    assert service.seen[0].headers["proxy-authorization"] == "Basic bmFtZTp3b3Jk"  # base64 of name:word
    assert service.key not in str(service.seen)
    service.seen.clear()
    with Web(service.url, Key(service.key), quick) as web:  # of this machine: no proxy
        web.json("TNG100-1/")
    assert [seen.path for seen in service.seen] == ["/api/TNG100-1/"]
    monkeypatch.setenv("https_proxy", "socks5://127.0.0.1:1")
    with pytest.raises(ServiceError, match="no address of an http or https proxy"):
        Web("https://tng.example/api", Key("k"))


def test_addresses_that_are_taken(monkeypatch):
    for url in ("http://localhost:1/api", "http://127.0.0.1:1", "http://[::1]:1/api", "https://tng.example"):
        Web(url, Key("k"))
    Web("http://tng.example/api", Key("k"), allow_http=True)
    monkeypatch.delenv("TNG_API_URL", raising=False)
    assert find_base_url() == "https://www.tng-project.org/api"
    monkeypatch.setenv("TNG_API_URL", "https://mirror.example/api")
    assert find_base_url() == "https://mirror.example/api"
    assert find_base_url("https://named.example") == "https://named.example"


# manners


@pytest.mark.parametrize(("connections", "rate"), [(2, 500.0), (8, 25.0)])
def test_few_at_once_and_not_too_fast(service, quick, faults, connections, rate):
    """Sixteen requests by sixteen threads over a client for fewer: counted and timed at the server."""
    service.misbehave("subhalos/1/", itertools.repeat(faults.slow(0.05)))
    manners = replace(quick, connections=connections, requests_per_second=rate)
    with Web(service.url, Key(service.key), manners) as web:
        threads = [threading.Thread(target=web.json, args=("TNG100-1/snapshots/50/subhalos/1/",)) for _ in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(service.seen) == 16
    assert service.most_at_once <= connections
    if rate < 100:  # 15 gaps at the least; single ones are blurred by the scheduler
        times = sorted(seen.time for seen in service.seen)
        assert times[-1] - times[0] >= 15 / rate - 0.02


@pytest.mark.parametrize("name", ["connections", "attempts", "requests_per_second", "connect_timeout", "read_timeout"])
def test_manners_that_make_no_sense(name):
    for value in (0, -1, float("nan")):
        with pytest.raises(SkyshiftError, match=f"politeness.{name} must be"):
            Politeness(**{name: value})


def test_a_stop_ends_requests_that_wait_for_bytes(service, quick, faults, big, tmp_path):
    """One waits for its first byte, one in the middle of a body, one for its next try: all end within a second."""
    service.misbehave("subhalos/1/", [faults.slow(20.0)])
    service.misbehave("subhalos/2/", itertools.repeat(faults.status(503, Retry_After="100")))
    service.pause = 3.0
    ended = []

    def run(call, *arguments):
        try:
            call(*arguments)
        except StopError as error:
            ended.append(str(error))

    web = Web(service.url, Key(service.key), replace(quick, longest_wait=500.0, read_timeout=60.0))
    calls = [
        (web.json, "TNG100-1/snapshots/50/subhalos/1/"),
        (fetch, web, tmp_path / "part"),
        (web.json, "TNG100-1/snapshots/50/subhalos/2/"),
    ]
    threads = [threading.Thread(target=run, args=call) for call in calls]
    for thread in threads:
        thread.start()
        time.sleep(0.1)
    start = time.monotonic()
    web.stop()
    for thread in threads:
        thread.join(timeout=5.0)
    assert time.monotonic() - start < 1.0
    assert ended == ["stopped"] * 3
    with pytest.raises(StopError, match="stopped"):
        web.json("TNG100-1/")
