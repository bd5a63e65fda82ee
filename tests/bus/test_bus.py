"""The seam, on both libraries: every trap that cortexd/bus.py claims to close, and what it promises its callers.

Each library gets a copy of the module of its own, since which one it runs on is decided when it is imported.
"""

from __future__ import annotations

import asyncio
import gc
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from jeepney import HeaderFields, Message, MessageType, new_error, new_method_return, new_signal
from jeepney.low_level import Parser

import cortexd.bus
from cortexd import encoding
from tests.support.wait import aio_until

LIBRARIES = [name for name in ("next", "fast") if importlib.util.find_spec(f"dbus_{name}")]
ECHO = "org.cortexlinux.Test.Echo"


def load_seam(library: str) -> Any:
    """A copy of cortexd.bus that runs on this library."""
    name = f"cortexd_bus_on_{library}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, cortexd.bus.__file__)
        assert spec is not None and spec.loader is not None
        sys.modules[name] = module = importlib.util.module_from_spec(spec)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("CORTEX_DBUS", library)
            spec.loader.exec_module(module)
    return sys.modules[name]


@pytest.fixture(params=LIBRARIES)
def seam(request: pytest.FixtureRequest) -> Any:
    """cortexd.bus, on each library."""
    return load_seam(request.param)


Connect = Callable[[], Awaitable[Any]]


@pytest.fixture
async def connect(seam: Any, private_bus: str) -> AsyncIterator[Connect]:
    """Makes connections to a real bus, and closes them."""
    made: list[Any] = []

    async def make() -> Any:
        made.append(await seam.Bus.connect(private_bus))
        return made[-1]

    yield make
    for bus in made:
        bus.close()
    await aio_until(lambda: not any(bus._tasks for bus in made), "the end of every connection")


@pytest.fixture
async def pair(connect: Connect) -> tuple[Any, Any]:
    """A client and a server that answers Echo(v) and Fail(s)."""
    client, server = await connect(), await connect()

    def answer(call: Any) -> bool:
        if call.interface != ECHO:
            return False
        if call.member == "Fail":
            call.error(ECHO + ".Failed", call.body[0])
        else:
            call.reply(call.signature, call.body)
        return True

    server.serve(answer)
    return client, server


async def echo(client: Any, server: Any, signature: str, *body: Any, member: str = "Echo") -> Any:
    """What comes back from the server."""
    return await client.call(server.unique_name, "/", ECHO, member, signature, body, timeout=10)


class FakeBus:
    """A message bus that lets one client in and then does as it is told."""

    def __init__(self, folder: Path) -> None:
        self.address = f"unix:path={folder}/fake"
        self.messages: list[Message] = []
        self.answer: Callable[[Message], None] = lambda message: None
        self._path = folder / "fake"
        self._reader = Parser()
        self.writer: asyncio.StreamWriter | None = None

    async def start(self) -> asyncio.Server:
        return await asyncio.start_unix_server(self._talk, self._path)

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.writer = writer
        await reader.readline()  # AUTH
        writer.write(b"OK 0123456789abcdef0123456789abcdef\r\n")
        while await reader.readline() != b"BEGIN\r\n":
            writer.write(b"ERROR\r\n")
        while data := await reader.read(65536):
            self._reader.add_data(data)
            while (message := self._reader.get_next_message()) is not None:
                if message.header.fields.get(HeaderFields.member) == "Hello":
                    self.send(new_method_return(message, "s", (":1.1",)))
                else:
                    self.messages.append(message)
                    self.answer(message)
        writer.close()

    def send(self, message: Message) -> None:
        """Send the client a message."""
        assert self.writer is not None
        self.writer.write(message.serialise(len(self.messages) + 1000))

    @property
    def transport(self) -> asyncio.ReadTransport:
        """What can be paused."""
        assert self.writer is not None
        transport = self.writer.transport
        assert isinstance(transport, asyncio.ReadTransport)
        return transport


@asynccontextmanager
async def fake_bus(folder: Path) -> AsyncIterator[FakeBus]:
    """A fake bus that listens."""
    bus = FakeBus(folder)
    server = await bus.start()
    try:
        yield bus
    finally:
        server.close()
        if bus.writer is not None:
            bus.writer.close()
            await asyncio.gather(bus.writer.wait_closed(), return_exceptions=True)
        await server.wait_closed()


@contextmanager
def deadline(seconds: float) -> Iterator[None]:
    """End even a loop that no longer yields."""

    def end(*_: object) -> None:
        raise AssertionError(f"not over within {seconds:g} s")

    previous = signal.signal(signal.SIGALRM, end)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)


def descriptors() -> set[str]:
    """The sockets that this process has open."""
    gc.collect()
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        try:
            found.add(f"{fd.name} {fd.readlink()}")
        except FileNotFoundError:
            continue  # the one that lists the folder
    return found


def test_runs_on_the_library_that_was_asked_for(seam: Any, request: pytest.FixtureRequest) -> None:
    assert f"dbus_{request.node.callspec.params['seam']}" == seam.LIBRARY


# -- Calls


async def test_values_arrive_as_plain_ones(seam: Any, pair: tuple[Any, Any]) -> None:
    v = seam.Variant
    sent = [(1, "two", [3, 4]), [("a", "b")], {"k": v("(sas)", ("x", ["y"])), "l": v("v", v("u", 7))}, 2**64 - 1, True]
    client, server = pair
    arrived: list[Any] = []
    server.serve(lambda call: arrived.extend(call.body) or call.reply(call.signature, sent) or True)
    got = await echo(client, server, "(isai)a(ss)a{sv}tb", *sent)
    assert got == arrived == [(1, "two", [3, 4]), [("a", "b")], {"k": ("x", ["y"]), "l": 7}, 2**64 - 1, True]


async def test_bytes_pass(pair: tuple[Any, Any]) -> None:
    (got,) = await echo(*pair, "ay", b"\x00\xff")
    assert bytes(got) == b"\x00\xff"


async def test_an_error_has_name_and_message(seam: Any, pair: tuple[Any, Any]) -> None:
    with pytest.raises(seam.BusError) as caught:
        await echo(*pair, "s", "no such thing", member="Fail")
    assert (caught.value.name, caught.value.message) == (ECHO + ".Failed", "no such thing")


async def test_what_the_server_leaves_alone_is_answered(seam: Any, pair: tuple[Any, Any]) -> None:
    client, server = pair
    assert await client.call(server.unique_name, "/", "org.freedesktop.DBus.Peer", "Ping") == []
    with pytest.raises(seam.BusError, match="UnknownMethod"):
        await client.call(server.unique_name, "/", "org.example.Other", "Anything")


async def test_nobody_of_that_name(seam: Any, connect: Connect) -> None:
    with pytest.raises(seam.BusError, match="ServiceUnknown"):
        await (await connect()).call("org.example.Nobody", "/", ECHO, "Echo")


async def test_no_reply_in_time_is_told_and_a_late_one_is_nobodys(seam: Any, tmp_path: Path) -> None:
    async with fake_bus(tmp_path) as fake:
        bus = await seam.Bus.connect(fake.address)
        with pytest.raises(seam.BusTimeout, match=r"org\.example\.Slow did not answer Work within 0\.05 s"):
            await bus.call("org.example.Slow", "/", ECHO, "Work", timeout=0.05)
        fake.send(new_method_return(fake.messages[0], "s", ("late",)))
        fake.answer = lambda message: fake.send(new_method_return(message, "s", ("in time",)))
        assert await bus.call("org.example.Slow", "/", ECHO, "Work") == ["in time"]
        assert not bus._pending
        bus.close()


async def test_a_cancelled_call_leaves_nothing(seam: Any, tmp_path: Path) -> None:
    async with fake_bus(tmp_path) as fake:
        bus = await seam.Bus.connect(fake.address)
        call = asyncio.create_task(bus.call("org.example.Slow", "/", ECHO, "Work"))
        await aio_until(lambda: fake.messages, "the call")
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert not bus._pending
        bus.close()


async def test_an_error_without_text_is_an_error(seam: Any, tmp_path: Path) -> None:
    async with fake_bus(tmp_path) as fake:
        bus = await seam.Bus.connect(fake.address)
        fake.answer = lambda message: fake.send(new_error(message, "org.example.Bad"))
        with pytest.raises(seam.BusError) as caught:
            await bus.call("org.example.Slow", "/", ECHO, "Work")
        assert (caught.value.name, caught.value.message) == ("org.example.Bad", "")
        bus.close()


# -- Answers


async def test_a_call_is_answered_once(pair: tuple[Any, Any]) -> None:
    client, server = pair

    def twice(call: Any) -> bool:
        call.reply("s", ["first"])
        call.reply("s", ["second"])
        call.error(ECHO + ".Third", "third")
        return True

    server.serve(twice)
    assert await echo(client, server, "") == ["first"]
    assert await client.call(server.unique_name, "/", "org.freedesktop.DBus.Peer", "Ping") == ["first"]


async def test_who_wants_no_reply_gets_none(seam: Any, tmp_path: Path) -> None:
    async with fake_bus(tmp_path) as fake:
        bus = await seam.Bus.connect(fake.address)
        bus.serve(lambda call: call.reply() or True)
        for serial, flags in ((1, 1), (2, 0)):
            message = new_signal(_Address, "Echo")
            message.header.message_type = MessageType.method_call
            message.header.flags = flags
            assert fake.writer is not None
            fake.writer.write(message.serialise(serial))
        await aio_until(lambda: fake.messages, "the reply")
        assert [m.header.fields[HeaderFields.reply_serial] for m in fake.messages] == [2]
        bus.close()


class _Address:
    object_path, interface, bus_name = "/", ECHO, None


async def test_a_reply_that_does_not_fit_is_an_internal_error(
    seam: Any, pair: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    client, server = pair
    server.serve(lambda call: call.reply("u", ["no number"]) or True)
    with pytest.raises(seam.BusError) as caught:
        await echo(client, server, "")
    assert caught.value.message == seam.INTERNAL_ERROR
    assert "does not fit its signature" in caplog.text


async def test_a_server_that_raises_tells_nothing_of_itself(
    seam: Any, pair: tuple[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    client, server = pair

    def broken(call: Any) -> bool:
        raise RuntimeError("a secret")

    server.serve(broken)
    with pytest.raises(seam.BusError) as caught:
        await echo(client, server, "")
    assert caught.value.message == seam.INTERNAL_ERROR
    assert "a secret" in caplog.text


async def test_an_answer_that_the_bus_would_not_carry_is_an_error(seam: Any, pair: tuple[Any, Any]) -> None:
    client, server = pair
    server.serve(lambda call: call.reply("as", [["x" * (1 << 20)] * 65]) or True)
    with pytest.raises(seam.BusError, match=r"LimitsExceeded: the answer is too long"):
        await echo(client, server, "")
    server.serve(lambda call: call.reply("as", [["x" * (1 << 20)] * 31]) or True)
    (got,) = await echo(client, server, "")
    assert len(got) == 31


async def test_a_long_error_is_cut(seam: Any, pair: tuple[Any, Any]) -> None:
    with pytest.raises(seam.BusError) as caught:
        await echo(*pair, "s", "x" * 100_000, member="Fail")
    assert caught.value.message == "x" * (seam.MAX_ERROR - 1) + "…"


# -- Text that the bus forbids


@pytest.mark.parametrize(
    ("bad", "clean"), [("a\0b", "a\ufffdb"), ("a\ud800b", "a?b"), ("\udcff", "?"), ("ü\0", "ü\ufffd"), ("ä€😀", "ä€😀")]
)
async def test_what_the_bus_forbids_is_cleaned(seam: Any, pair: tuple[Any, Any], bad: str, clean: str) -> None:
    client, server = pair
    sent = [bad, [bad], {bad: seam.Variant("s", bad)}, (bad,)]
    arrived: list[Any] = []
    server.serve(lambda call: arrived.extend(call.body) or call.reply(call.signature, sent) or True)
    got = await echo(client, server, "sasa{sv}(s)", *sent)
    assert got == arrived == [clean, [clean], {clean: clean}, (clean,)]
    server.serve(lambda call: call.error(ECHO + ".Failed", bad) or True)
    with pytest.raises(seam.BusError) as caught:
        await echo(client, server, "")
    assert caught.value.message == clean

    told: list[Any] = []
    await client.subscribe(f"type='signal',interface='{ECHO}'", lambda s: told.append(s.body))
    server.emit("/", ECHO, "Told", "s", [bad])
    await aio_until(lambda: told, "the signal")
    assert told == [[clean]]
    assert not client.closed.done() and not server.closed.done()


# -- Much at once


async def test_2000_messages_in_one_tick_while_the_peer_does_not_read(seam: Any, tmp_path: Path) -> None:
    async with fake_bus(tmp_path) as fake:
        bus = await seam.Bus.connect(fake.address)
        fake.transport.pause_reading()
        for number in range(2000):
            bus.emit("/", ECHO, "Told", "us", [number, "x" * 1000])
        for _ in range(20):  # the writer's turns: it finds the buffer full
            await asyncio.sleep(0)
        assert not bus.closed.done()
        assert len(fake.messages) < 2000
        fake.transport.resume_reading()
        await aio_until(lambda: len(fake.messages) == 2000, "every message")
        assert [m.body[0] for m in fake.messages] == list(range(2000))
        assert not bus.closed.done()
        bus.close()


async def test_2000_calls_at_once(pair: tuple[Any, Any]) -> None:
    answers = await asyncio.gather(*(echo(*pair, "us", n, "x" * 500) for n in range(2000)))
    assert [answer[0] for answer in answers] == list(range(2000))


async def test_a_slow_peer_keeps_nobody_waiting(seam: Any, pair: tuple[Any, Any], private_bus: str) -> None:
    client, server = pair
    slow = await asyncio.to_thread(_slow_client, private_bus, server.unique_name)
    with slow:
        began = time.monotonic()
        assert await echo(client, server, "s", "quick") == ["quick"]
        assert time.monotonic() - began < 5
        assert await asyncio.to_thread(_replies, slow, 3000) == 3000


def _slow_client(address: str, server: str) -> socket.socket:
    """A client that calls 3000 times and does not read the answers: 12 MB of them."""
    from jeepney import DBusAddress, new_method_call
    from jeepney.bus_messages import message_bus

    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(20)
    sock.connect(address.removeprefix("unix:path="))
    sock.sendall(b"\0AUTH EXTERNAL " + str(os.getuid()).encode().hex().encode() + b"\r\n")
    assert sock.recv(100).startswith(b"OK")
    sock.sendall(b"BEGIN\r\n" + message_bus.Hello().serialise(1))
    for serial in range(2, 3002):
        call = new_method_call(DBusAddress("/", server, ECHO), "Echo", "s", ("x" * 4000,))
        sock.sendall(call.serialise(serial))
    return sock


def _replies(sock: socket.socket, wanted: int) -> int:
    parser, found = Parser(), 0
    while found < wanted:
        parser.add_data(sock.recv(1 << 20))
        while (message := parser.get_next_message()) is not None:
            found += message.header.message_type is MessageType.method_return and message.body != (":1.0",)
            found -= message.header.fields.get(HeaderFields.reply_serial) == 1
    return found


# -- Signals


async def test_nobody_else_speaks_for_the_bus(seam: Any, connect: Connect, caplog: pytest.LogCaptureFixture) -> None:
    """A signal can be sent to one connection alone, whatever that has asked for: who is said to have left has not."""
    client, liar = await connect(), await connect()
    left: list[str] = []
    await client.on_leave(left.append)
    to_client = {
        encoding.PATH: seam.DBUS_PATH, encoding.INTERFACE: seam.DBUS, encoding.MEMBER: "NameOwnerChanged",
        encoding.DESTINATION: client.unique_name,
    }  # fmt: skip
    for signature, body in (("sss", [":1.999", ":1.999", ""]), ("u", [7]), ("", [])):
        liar.send(seam._message(encoding.SIGNAL, liar.next_serial(), to_client, signature, body))
    await liar.call(seam.DBUS, seam.DBUS_PATH, seam.DBUS, "GetId")  # they have passed through the bus
    liar.close()
    await aio_until(lambda: liar.unique_name in left, "the bus's own word that it left")
    assert left == [liar.unique_name] and not caplog.records


async def test_signals_arrive_in_order_and_only_those_asked_for(pair: tuple[Any, Any]) -> None:
    client, server = pair
    told: dict[str, list[int]] = {"all": [], "odd": [], "path": [], "below": [], "first": []}

    def into(name: str) -> Callable[[Any], None]:
        return lambda s: told[name].append(s.body[1])

    rule = f"type='signal',interface='{ECHO}'"
    await client.subscribe(rule, into("all"))
    await client.subscribe(f"{rule},member='Odd'", into("odd"))
    await client.subscribe(f"{rule},path='/a/b'", into("path"))
    await client.subscribe(f"{rule}, path_namespace='/a'", into("below"))
    await client.subscribe(f"{rule},arg0='first'", into("first"))
    paths = ["/a", "/a/b", "/ab"]
    for n in range(300):
        word = "first" if n == 0 else "then"
        server.emit(paths[n % 3], ECHO, "Odd" if n % 2 else "Even", "su", [word, n])
    await aio_until(lambda: len(told["all"]) == 300, "the signals")
    assert told["all"] == list(range(300))
    assert told["odd"] == list(range(1, 300, 2))
    assert told["path"] == list(range(1, 300, 3))
    assert told["below"] == [n for n in range(300) if n % 3 != 2]
    assert told["first"] == [0]


async def test_a_handler_that_raises_harms_nobody(pair: tuple[Any, Any], caplog: pytest.LogCaptureFixture) -> None:
    client, server = pair
    told: list[int] = []

    def broken(_: Any) -> None:
        raise RuntimeError("a bug")

    rule = f"type='signal',interface='{ECHO}'"
    await client.subscribe(rule, broken)
    await client.subscribe(rule, lambda s: told.append(s.body[0]))
    server.emit("/", ECHO, "Told", "u", [1])
    server.emit("/", ECHO, "Told", "u", [2])
    await aio_until(lambda: len(told) == 2, "both signals")
    assert "a bug" in caplog.text
    assert await echo(client, server, "s", "alive") == ["alive"]


async def test_a_subscription_that_the_bus_refuses_is_forgotten(seam: Any, connect: Connect) -> None:
    bus = await connect()
    with pytest.raises(seam.BusError, match="MatchRuleInvalid"):
        await bus.subscribe("type='nonsense'", lambda _: None)
    assert bus._subscriptions == []


# -- The name


async def test_a_name_that_is_taken_is_not_queued_for(connect: Connect) -> None:
    first, second = await connect(), await connect()
    assert await first.request_name("org.cortexlinux.Test")
    assert await first.request_name("org.cortexlinux.Test")
    assert not await second.request_name("org.cortexlinux.Test")
    first.close()
    owned: list[Any] = [True]

    async def owner() -> bool:
        owned[:] = await second.call(
            cortexd.bus.DBUS, cortexd.bus.DBUS_PATH, cortexd.bus.DBUS, "NameHasOwner", "s", ["org.cortexlinux.Test"]
        )
        return bool(owned[0])

    async with asyncio.timeout(10):
        while await owner():
            await asyncio.sleep(0)
    assert await second.request_name("org.cortexlinux.Test")


# -- The end of the connection


async def test_after_the_bus_has_gone(seam: Any, tmp_path: Path) -> None:
    async with fake_bus(tmp_path) as fake:
        bus = await seam.Bus.connect(fake.address)
        calls: list[Any] = []
        bus.serve(lambda call: calls.append(call) or True)
        message = new_signal(_Address, "Echo")
        message.header.message_type = MessageType.method_call
        fake.send(message)
        pending = asyncio.create_task(bus.call("org.example.Slow", "/", ECHO, "Work"))
        await aio_until(lambda: fake.messages and calls, "the calls")
        assert fake.writer is not None
        fake.writer.close()
        with pytest.raises(seam.BusGone):
            await pending
        assert bus.closed.done()
        with pytest.raises(seam.BusGone):
            await bus.call("org.example.Slow", "/", ECHO, "Work")
        await aio_until(lambda: not bus._tasks, "the descriptor's end")
        with _reader_on_a_new_descriptor():
            bus.emit("/", ECHO, "Told", "", [])
            calls[0].reply("s", ["too late"])
            bus.close()


@contextmanager
def _reader_on_a_new_descriptor() -> Iterator[None]:
    """The connection's number belongs to somebody else now, who must not notice."""
    here, there = socket.socketpair()
    told: list[bytes] = []
    loop = asyncio.get_running_loop()
    with here, there:
        loop.add_reader(here, lambda: told.append(here.recv(10)))
        yield
        assert loop.remove_reader(here)
        assert not loop.remove_writer(here)


async def test_after_our_own_close(seam: Any, connect: Connect) -> None:
    bus = await connect()
    bus.close()
    bus.close()
    assert bus.closed.done()
    with pytest.raises(seam.BusGone):
        await bus.call(cortexd.bus.DBUS, cortexd.bus.DBUS_PATH, cortexd.bus.DBUS, "GetId")


@pytest.mark.parametrize("said", [b"", b"OK 0123", b"OK 0123456789abcdef0123456789abcdef\r\n", b"REJECTED\r\n"])
async def test_a_bus_that_hangs_up_while_we_come_in(seam: Any, tmp_path: Path, said: bytes) -> None:
    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(said)
        writer.close()

    before = descriptors()
    server = await asyncio.start_unix_server(hang_up, tmp_path / "bus")
    with deadline(10):
        used = time.process_time()
        with pytest.raises(seam.BusGone, match=f"no connection to the bus at unix:path={tmp_path}/bus: ."):
            await seam.Bus.connect(f"unix:path={tmp_path}/bus")
        assert time.process_time() - used < 2
    server.close()
    await server.wait_closed()
    await aio_until(lambda: descriptors() == before, "no descriptor left")


async def test_a_bus_that_says_nothing(seam: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(seam, "CONNECT_TIMEOUT", 0.1)
    before = descriptors()
    listener = socket.socket(socket.AF_UNIX)
    with listener:
        listener.bind(f"{tmp_path}/bus")
        listener.listen()
        with pytest.raises(seam.BusGone, match="TimeoutError"):
            await seam.Bus.connect(f"unix:path={tmp_path}/bus")
    await aio_until(lambda: descriptors() == before, "no descriptor left")


@pytest.mark.parametrize("address", ["unix:path=/nonexistent/bus", "nonsense", "unix:path=/etc/passwd", "tcp:host=a"])
async def test_no_bus_there(seam: Any, address: str) -> None:
    before = descriptors()
    with pytest.raises(seam.BusGone, match="no connection to the bus at "):
        await seam.Bus.connect(address)
    await aio_until(lambda: descriptors() == before, "no descriptor left")


async def test_a_thousand_calls_and_twenty_connections_leave_nothing(
    seam: Any, private_bus: str, caplog: pytest.LogCaptureFixture
) -> None:
    before, tasks = descriptors(), len(asyncio.all_tasks())
    for _ in range(20):
        bus = await seam.Bus.connect(private_bus)
        calls = (bus.call(cortexd.bus.DBUS, cortexd.bus.DBUS_PATH, cortexd.bus.DBUS, "GetId") for _ in range(50))
        await asyncio.gather(*calls)
        bus.close()
    del bus, calls
    await aio_until(lambda: descriptors() == before, "no descriptor left")
    await aio_until(lambda: len(asyncio.all_tasks()) == tasks, "no task left")
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


# -- Addresses


def test_where_the_users_bus_is(seam: Any) -> None:
    address = seam.session_address
    assert address({"DBUS_SESSION_BUS_ADDRESS": "unix:path=/a", "XDG_RUNTIME_DIR": "/b"}) == "unix:path=/a"
    assert address({"XDG_RUNTIME_DIR": "/b"}) == "unix:path=/b/bus"
    assert address({}) == f"unix:path=/run/user/{os.getuid()}/bus"
