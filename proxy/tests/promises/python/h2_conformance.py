"""HTTP/2 conformance after RFC 9113 and RFC 7541, on hyperframe and hpack: h2_conformance.py HOST PORT CERTIFICATE KEY.

Prints one JSON object: for each case "pass", or what happened instead. A case is told apart from its neighbours by what the
RFC demands, not by what any implementation does: where it leaves a choice (a stream error may end the connection, a malformed
request may be answered with 400), each choice passes. Whoever answers must serve GET and POST with a body of `METHOD PATH LENGTH`.
"""

import json
import socket
import ssl
import struct
import sys

import hpack
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    PushPromiseFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATIENCE = 10
PROTOCOL, FLOW, CLOSED, SIZE, REFUSED, COMPRESSION = 1, 3, 5, 6, 7, 9
GET = [(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a.test")]
POST = [(":method", "POST")] + GET[1:]
CASES = {}


def case(section):
    def register(act):
        CASES[f"{section} {act.__name__}"] = act
        return act

    return register


def cases(section, **variants):
    """One case for each named argument."""

    def register(act):
        for name, value in variants.items():
            CASES[f"{section} {act.__name__}: {name}"] = lambda c, value=value: act(c, value)
        return act

    return register


class Failed(Exception):
    pass


class Ended(Exception):
    """The peer ended the connection."""


class Connection:
    def __init__(self, target, begin=True):
        tcp = socket.create_connection(target[:2], timeout=PATIENCE)
        tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
        context.load_cert_chain(target[2], target[3])
        context.set_alpn_protocols(["h2"])
        self.tls = context.wrap_socket(tcp)
        self.encoder, self.decoder, self.settings, self.windows = hpack.Encoder(), hpack.Decoder(), {}, {}
        if self.tls.selected_alpn_protocol() != "h2":
            raise Failed("h2 was not agreed on")
        if begin:
            self.send(PREFACE, SettingsFrame(0))
            self.await_settings()

    def await_settings(self):
        """The peer's settings, and its acknowledgement of ours."""
        frame = self.read()
        if not isinstance(frame, SettingsFrame) or "ACK" in frame.flags:
            raise Failed(f"the first frame is no SETTINGS but {frame}")
        self.settings = frame.settings
        self.send(SettingsFrame(0, flags=["ACK"]))
        while not (isinstance(frame, SettingsFrame) and "ACK" in frame.flags):
            frame = self.read()

    def send(self, *frames):
        data = b"".join(f if isinstance(f, bytes) else f.serialize() for f in frames)
        try:
            self.tls.sendall(data)
        except OSError:
            pass  # What the peer said before it went can still be read.

    def exactly(self, length):
        data = b""
        while len(data) < length:
            try:
                some = self.tls.recv(length - len(data))
            except socket.timeout:
                raise Failed(f"nothing more within {PATIENCE} s") from None
            except OSError:
                some = b""
            if not some:
                raise Ended
            data += some
        return data

    def read(self):
        frame, length = Frame.parse_frame_header(memoryview(self.exactly(9)))
        frame.parse_body(memoryview(self.exactly(length)))
        if isinstance(frame, SettingsFrame) and "ACK" not in frame.flags and self.settings:
            self.send(SettingsFrame(0, flags=["ACK"]))
        return frame

    def block(self, headers):
        return self.encoder.encode(headers)

    def headers(self, stream, headers=GET, end=True, block=None, flags=(), **options):
        flags = list(flags) + ["END_HEADERS"] + (["END_STREAM"] if end else [])
        block = self.block(headers) if block is None else block
        return HeadersFrame(stream, data=block, flags=flags, **options)

    def data(self, stream, data=b"", end=True, **options):
        flags = (["END_STREAM"] if end else []) + (["PADDED"] if "pad_length" in options else [])
        return DataFrame(stream, data=data, flags=flags, **options)

    def ask(self, stream, headers=GET, **options):
        self.send(self.headers(stream, headers, **options))

    def answer(self, stream, status="200"):
        """A whole answer on this stream: its body."""
        got, body = None, b""
        while True:
            try:
                frame = self.read()
            except Ended:
                raise Failed("the connection ended instead of an answer") from None
            if isinstance(frame, GoAwayFrame) and frame.error_code:
                raise Failed(f"GOAWAY {frame.error_code} instead of an answer")
            if isinstance(frame, HeadersFrame):
                fields = dict(self.decoder.decode(frame.data))
            if frame.stream_id != stream:
                continue
            if isinstance(frame, RstStreamFrame):
                raise Failed(f"RST_STREAM {frame.error_code} instead of an answer")
            if isinstance(frame, HeadersFrame) and got is None:
                got = fields[":status"]
            if isinstance(frame, DataFrame):
                body += frame.data
            if "END_STREAM" in frame.flags:
                break
        if got != status:
            raise Failed(f"status {got}, not {status}: {body[:80]}")
        return body

    def lives(self, stream=101):
        """The connection still serves: whatever came before was no error of it."""
        self.ask(stream)
        self.answer(stream)

    def pinged(self, data=b"12345678"):
        self.send(PingFrame(0, data))
        while True:
            frame = self.read()
            if isinstance(frame, GoAwayFrame):
                raise Failed(f"GOAWAY {frame.error_code}")
            if isinstance(frame, PingFrame) and "ACK" in frame.flags:
                if bytes(frame.opaque_data) != data:
                    raise Failed(f"PING of {data} came back as {frame.opaque_data}")
                return

    def connection_error(self, *codes):
        try:
            while True:
                frame = self.read()
                if isinstance(frame, GoAwayFrame):
                    if frame.error_code not in codes:
                        raise Failed(f"GOAWAY {frame.error_code}, not {codes}")
                    return
                if isinstance(frame, HeadersFrame) and frame.stream_id:
                    fields = dict(self.decoder.decode(frame.data))
                    if fields.get(":status") == "200" and "END_STREAM" in frame.flags:
                        raise Failed("answered as if nothing were wrong")
        except Ended:
            return

    def stream_error(self, stream, *codes):
        """RST_STREAM with one of these codes, or 4xx, or the end of the connection with one of these codes."""
        try:
            while True:
                frame = self.read()
                if isinstance(frame, GoAwayFrame):
                    if frame.error_code not in codes:
                        raise Failed(f"GOAWAY {frame.error_code}, not {codes}")
                    return
                if isinstance(frame, HeadersFrame):
                    fields = dict(self.decoder.decode(frame.data))
                if frame.stream_id != stream:
                    continue
                if isinstance(frame, RstStreamFrame):
                    if frame.error_code not in codes:
                        raise Failed(f"RST_STREAM {frame.error_code}, not {codes}")
                    return
                if isinstance(frame, HeadersFrame) and PROTOCOL in codes and fields[":status"].startswith("4"):
                    return
                if "END_STREAM" in frame.flags and CLOSED not in codes:
                    raise Failed("answered as if nothing were wrong")
        except Ended:
            return


def raw(kind, flags, stream, payload=b"", length=None):
    length = len(payload) if length is None else length
    return struct.pack(">I", length)[1:] + bytes([kind, flags]) + struct.pack(">I", stream) + payload


def setting(key, value):
    return struct.pack(">HI", key, value)


# §3.4: the preface.


@case("3.4")
def whole_exchange(c):
    c.ask(1)
    body = c.answer(1)
    if body.strip() != b"GET / 0":
        raise Failed(f"{body}")


def bare(act):
    """A case that begins before the preface."""
    act.bare = True
    return act


@case("3.4")
@bare
def preface_byte_by_byte(c):
    for byte in PREFACE + SettingsFrame(0).serialize():
        c.send(bytes([byte]))
    c.await_settings()
    c.lives(1)


@case("3.4")
@bare
def preface_wrong(c):
    c.send(b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", SettingsFrame(0))
    c.connection_error(PROTOCOL)


@case("3.4")
@bare
def preface_of_http_1(c):
    c.send(b"GET / HTTP/1.1\r\nhost: a.test\r\nx-long: 1234567890\r\n\r\n")
    try:
        data = c.exactly(9)
        if data.startswith(b"HTTP/1.1 2"):
            raise Failed("HTTP/1.1 is served where h2 was agreed on")
    except Ended:
        pass


@case("3.4")
@bare
def preface_without_settings(c):
    c.send(PREFACE, PingFrame(0, b"12345678"))
    try:
        while not isinstance(frame := c.read(), GoAwayFrame):
            if isinstance(frame, PingFrame):
                raise Failed("the PING is answered as if SETTINGS had come")
    except Ended:
        pass


@case("3.4")
@bare
def requests_need_not_wait_for_the_servers_settings(c):
    c.send(PREFACE, SettingsFrame(0), c.headers(1))
    c.await_settings()
    c.answer(1)


# §4: frames.


@cases("4.1", connection=0, stream=1)
def unknown_frame_is_ignored(c, stream):
    if stream:
        c.ask(1, POST, end=False)
    c.send(raw(0x16, 0xFF, stream, b"whatever"))
    if stream:
        c.send(c.data(1))
        c.answer(1)
    c.lives()


@case("4.1")
def unknown_flags_are_ignored(c):
    c.send(raw(6, 0xFE, 0, b"12345678"))
    c.lives()


@case("4.1")
def reserved_bit_is_ignored(c):
    c.send(raw(6, 0, 0x80000000, b"12345678"))
    c.lives()


@case("4.2")
def largest_frame(c):
    c.ask(1, POST, end=False)
    c.send(c.data(1, b"x" * 16384))
    if c.answer(1).strip() != b"POST / 16384":
        raise Failed("not all of it arrived")


@case("4.2")
def too_large_data(c):
    c.ask(1, POST, end=False)
    c.send(raw(0, 1, 1, b"x" * (c.settings.get(5, 16384) + 1)))
    c.stream_error(1, SIZE)


@case("4.2")
def too_large_headers(c):
    c.send(raw(1, 5, 1, c.block(GET) + b"\0" * c.settings.get(5, 16384)))
    c.connection_error(SIZE)


@case("4.2")
def too_large_unknown_frame(c):
    c.send(raw(0x16, 0, 0, b"x" * (c.settings.get(5, 16384) + 1)))
    c.connection_error(SIZE)


# §4.3 and RFC 7541: header blocks.


@cases(
    "4.3",
    index_zero=b"\x80",
    index_beyond_the_table=b"\xff\x80\x01",
    integer_too_large=b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    string_beyond_the_block=b"\x00\x05ab",
    table_size_above_the_limit=b"\x3f\xff\xff\xff\xff\x07",
    huffman_padding_of_a_byte=b"\x00\x84a\xff\xff\xff\x01b",
    huffman_padding_of_zeros=b"\x00\x01a\x81\x18",
    huffman_end_of_string=b"\x00\x01a\x84\xff\xff\xff\xff",
    name_index_beyond_the_table=b"\x7f\xff\x01\x01a",
    truncated_integer=b"\xff",
)
def block_that_cannot_be_decoded(c, garbage):
    c.ask(1, block=c.block(GET) + garbage)
    c.connection_error(COMPRESSION)


@case("4.3")
def table_size_update_behind_a_field(c):
    c.ask(1, block=c.block(GET) + b"\x20")
    c.connection_error(COMPRESSION)


@case("4.3")
def table_of_no_size(c):
    c.encoder.header_table_size = 0
    c.ask(1)
    c.answer(1)
    c.lives()


@case("4.3")
def tables_are_kept_in_step(c):
    for stream in range(1, 41, 2):
        c.ask(stream, GET + [(f"x-{stream}", "v" * stream), ("x-same", "same")])
    seen = set()
    while len(seen) < 20:
        frame = c.read()
        if isinstance(frame, HeadersFrame):
            if dict(c.decoder.decode(frame.data))[":status"] != "200":
                raise Failed("an answer that is none")
            seen.add(frame.stream_id)


@cases("4.3", priority=PriorityFrame(1).serialize(), ping=PingFrame(0, b"12345678").serialize(), unknown=raw(0x16, 0, 0))
def frame_within_a_header_block(c, frame):
    half = c.block(GET)
    c.send(HeadersFrame(1, data=half[:2], flags=["END_STREAM"]), frame, ContinuationFrame(1, data=half[2:], flags=["END_HEADERS"]))
    c.connection_error(PROTOCOL)


@case("4.3")
def another_streams_headers_within_a_header_block(c):
    half = c.block(GET)
    c.send(HeadersFrame(1, data=half[:2], flags=["END_STREAM"]), c.headers(3, block=half))
    c.connection_error(PROTOCOL)


# §5.1: the states of a stream.


@cases(
    "5.1",
    data=DataFrame(1, data=b"x", flags=["END_STREAM"]),
    rst_stream=RstStreamFrame(1, error_code=8),
    window_update=WindowUpdateFrame(1, window_increment=1),
    continuation=ContinuationFrame(1, data=b"", flags=["END_HEADERS"]),
)
def idle_stream(c, frame):
    c.send(frame)
    c.connection_error(PROTOCOL)


@cases("5.1", data=0, headers=1, continuation=9)
def half_closed_stream(c, kind):
    # An empty window keeps the answer, and with it the end of the stream, away.
    c.send(SettingsFrame(0, settings={4: 0}))
    c.ask(1)
    c.send({0: c.data(1, b"x"), 1: c.headers(1), 9: ContinuationFrame(1, data=b"", flags=["END_HEADERS"])}[kind])
    c.stream_error(1, CLOSED, PROTOCOL) if kind == 9 else c.stream_error(1, CLOSED)


@cases("5.1", data=0, headers=1)
def stream_that_was_reset(c, kind):
    c.ask(1, POST, end=False)
    c.send(RstStreamFrame(1, error_code=8))
    c.send(c.data(1, b"x") if kind == 0 else c.headers(1))
    # Either is told of, or what races with a reset is passed over; it must not be answered.
    c.send(PingFrame(0, b"87654321"))
    while True:
        try:
            frame = c.read()
        except Ended:
            return
        if isinstance(frame, HeadersFrame):
            raise Failed("answered")
        if isinstance(frame, (RstStreamFrame, GoAwayFrame)):
            if frame.error_code not in (CLOSED, PROTOCOL):
                raise Failed(f"{frame.error_code}")
            return
        if isinstance(frame, PingFrame):
            return


@cases("5.1", data=0, headers=1)
def stream_that_has_ended(c, kind):
    c.ask(1)
    c.answer(1)
    c.send(c.data(1, b"x") if kind == 0 else c.headers(1))
    c.stream_error(1, CLOSED, PROTOCOL)


@cases("5.1", window_update=WindowUpdateFrame(1, window_increment=9), priority=PriorityFrame(1), rst_stream=RstStreamFrame(1))
def frame_that_may_come_late(c, frame):
    c.ask(1)
    c.answer(1)
    c.send(frame)
    c.lives()


@cases("5.1.1", even=2, zero=0)
def stream_number_of_no_client(c, stream):
    c.send(raw(1, 5, stream, c.block(GET)))
    c.connection_error(PROTOCOL)


@case("5.1.1")
def stream_number_that_is_smaller(c):
    c.ask(5)
    c.answer(5)
    c.ask(3)
    c.connection_error(PROTOCOL, CLOSED)


@case("5.1.1")
def stream_numbers_may_be_left_out(c):
    c.ask(5)
    c.answer(5)
    c.ask(0x7FFFFFFF)
    c.answer(0x7FFFFFFF)


@case("5.1.2")
def more_streams_than_allowed(c):
    most = c.settings.get(3)
    if most is None or most > 5000:
        raise Failed(f"no bound is announced: {most}")
    for stream in range(1, 2 * most + 3, 2):
        c.ask(stream, POST, end=False)
    c.stream_error(2 * most + 1, PROTOCOL, REFUSED)


# §6: each kind of frame.


@cases(
    "6",
    data=raw(0, 1, 0, b"x"),
    priority=raw(2, 0, 0, b"\0\0\0\1\0"),
    rst_stream=raw(3, 0, 0, b"\0\0\0\1"),
    continuation=raw(9, 4, 0),
)
def frame_that_needs_a_stream(c, frame):
    c.send(frame)
    c.connection_error(PROTOCOL)


@cases(
    "6",
    settings=raw(4, 0, 1, setting(3, 5)),
    ping=raw(6, 0, 1, b"12345678"),
    goaway=raw(7, 0, 1, b"\0" * 8),
)
def frame_of_the_connection_on_a_stream(c, frame):
    c.ask(1, POST, end=False)
    c.send(frame)
    c.connection_error(PROTOCOL)


@cases(
    "6",
    ping_of_6=raw(6, 0, 0, b"123456"),
    ping_of_9=raw(6, 0, 0, b"123456789"),
    settings_of_3=raw(4, 0, 0, b"123"),
    settings_ack_with_more=raw(4, 1, 0, setting(3, 5)),
    window_update_of_3=raw(8, 0, 0, b"123"),
    goaway_of_7=raw(7, 0, 0, b"1234567"),
    rst_stream_of_3=raw(3, 0, 1, b"123"),
)
def frame_of_a_wrong_size(c, frame):
    c.ask(1, POST, end=False)
    c.send(frame)
    c.connection_error(SIZE)


@case("6.3")
def priority_of_a_wrong_size(c):
    c.ask(1, POST, end=False)
    c.send(raw(2, 0, 1, b"\0\0\0\1"))
    c.stream_error(1, SIZE)


@cases("6.1", whole=5, more=200)
def data_padding(c, pad):
    c.ask(1, POST, end=False)
    c.send(c.data(1, b"hello", pad_length=pad))
    if c.answer(1).strip() != b"POST / 5":
        raise Failed("padding is no body")


@cases("6.1", data=(0, 9), headers=(1, 0xD))
def padding_beyond_the_frame(c, frame):
    kind, flags = frame
    if kind == 0:
        c.ask(1, POST, end=False)
        c.send(raw(0, flags, 1, b"\x06hello"))
    else:
        block = c.block(GET)
        c.send(raw(1, flags, 1, bytes([len(block) + 1]) + block))
    c.connection_error(PROTOCOL)


@case("6.2")
def headers_with_padding_and_priority(c):
    block = c.block(GET)
    c.send(raw(1, 0x2D, 1, b"\x04" + b"\0\0\0\0\xff" + block + b"\0" * 4))
    c.answer(1)


@case("6.3")
def priority_of_an_idle_stream(c):
    c.send(PriorityFrame(7, depends_on=0, stream_weight=3), PriorityFrame(9, depends_on=7, stream_weight=3))
    c.lives()


@case("6.4")
def reset_ends_one_stream_alone(c):
    c.ask(1, POST, end=False)
    c.ask(3, POST, end=False)
    c.send(RstStreamFrame(1, error_code=8), c.data(3, b"abc"))
    if c.answer(3).strip() != b"POST / 3":
        raise Failed("the other stream")


@cases(
    "6.5.2",
    enable_push_of_2=(2, 2, PROTOCOL),
    window_above_the_limit=(4, 1 << 31, FLOW),
    frame_size_too_small=(5, 16383, PROTOCOL),
    frame_size_too_large=(5, 1 << 24, PROTOCOL),
)
def setting_out_of_range(c, what):
    key, value, code = what
    c.send(raw(4, 0, 0, setting(key, value)))
    c.connection_error(code)


@case("6.5.2")
def unknown_setting_is_ignored(c):
    c.send(raw(4, 0, 0, setting(0xF0F0, 7)))
    c.lives()


@case("6.5.3")
def settings_are_acknowledged_each(c):
    c.send(*[SettingsFrame(0, settings={3: 100 + n}) for n in range(5)])
    for _ in range(5):
        frame = c.read()
        while not (isinstance(frame, SettingsFrame) and "ACK" in frame.flags):
            frame = c.read()


@case("6.5.3")
def last_of_several_values_holds(c):
    c.send(raw(4, 0, 0, setting(4, 100) + setting(4, 1)))
    c.ask(1)
    if len(first_data(c, 1).data) != 1:
        raise Failed("the first value was taken")


@case("6.6")
def push_promise_of_a_client(c):
    c.ask(1, POST, end=False)
    c.send(PushPromiseFrame(1, promised_stream_id=2, data=c.block(GET), flags=["END_HEADERS"]))
    c.connection_error(PROTOCOL)


@case("6.7")
def ping_comes_back(c):
    c.pinged(b"\0\1\2\3\4\5\6\7")
    c.pinged(b"abcdefgh")


@case("6.7")
def ping_that_nobody_sent_is_ignored(c):
    c.send(PingFrame(0, b"12345678", flags=["ACK"]))
    c.lives()


@case("6.8")
def streams_go_on_after_a_clients_goaway(c):
    c.ask(1, POST, end=False)
    c.send(GoAwayFrame(0, last_stream_id=0, error_code=0), c.data(1, b"abc"))
    if c.answer(1).strip() != b"POST / 3":
        raise Failed("another answer")


# §6.9: flow control.


def first_data(c, stream):
    while True:
        frame = c.read()
        if isinstance(frame, HeadersFrame):
            c.decoder.decode(frame.data)
        if isinstance(frame, DataFrame) and frame.stream_id == stream and frame.data:
            return frame


@case("6.9")
def increment_of_zero_on_the_connection(c):
    c.send(raw(8, 0, 0, b"\0\0\0\0"))
    c.connection_error(PROTOCOL)


@case("6.9")
def increment_of_zero_on_a_stream(c):
    c.ask(1, POST, end=False)
    c.send(raw(8, 0, 1, b"\0\0\0\0"))
    c.stream_error(1, PROTOCOL)


@case("6.9.1")
def window_of_the_connection_overflows(c):
    c.send(*[WindowUpdateFrame(0, window_increment=0x7FFFFFFF)] * 2)
    c.connection_error(FLOW)


@case("6.9.1")
def window_of_a_stream_overflows(c):
    c.ask(1, POST, end=False)
    c.send(*[WindowUpdateFrame(1, window_increment=0x7FFFFFFF)] * 2)
    c.stream_error(1, FLOW)


@case("6.9.1")
def answer_waits_for_its_window(c):
    c.send(SettingsFrame(0, settings={4: 0}))
    c.ask(1)
    c.pinged()
    c.send(WindowUpdateFrame(1, window_increment=3))
    if len(first_data(c, 1).data) != 3:
        raise Failed("more than the window")
    c.send(WindowUpdateFrame(1, window_increment=100))
    first_data(c, 1)


@case("6.9.2")
def window_of_open_streams_changes_with_the_setting(c):
    c.send(SettingsFrame(0, settings={4: 0}))
    c.ask(1)
    c.pinged()
    c.send(SettingsFrame(0, settings={4: 1}))
    if len(first_data(c, 1).data) != 1:
        raise Failed("more than the window")


@case("6.9.2")
def window_may_become_negative(c):
    c.send(SettingsFrame(0, settings={4: 3}))
    c.ask(1)
    if len(first_data(c, 1).data) != 3:
        raise Failed("more than the window")
    c.send(SettingsFrame(0, settings={4: 2}))
    c.pinged()
    c.send(WindowUpdateFrame(1, window_increment=2))
    if len(first_data(c, 1).data) != 1:
        raise Failed("the window was -1 and became 1")


@case("6.9.2")
def setting_overflows_a_streams_window(c):
    c.ask(1, POST, end=False)
    c.send(WindowUpdateFrame(1, window_increment=0x7FFFFFFF - 65535), SettingsFrame(0, settings={4: 0x7FFFFFFF}))
    c.connection_error(FLOW)


# §6.10: CONTINUATION.


@case("6.10")
def block_in_many_pieces(c):
    block = c.block(GET + [("x-long", "y" * 200)])
    # Few, and none of them empty: many small ones are an attack that may be refused as such.
    pieces = [block[n : n + 50] for n in range(0, len(block), 50)]
    c.send(HeadersFrame(1, data=pieces[0], flags=["END_STREAM"]))
    c.send(*[ContinuationFrame(1, data=piece) for piece in pieces[1:-1]])
    c.send(ContinuationFrame(1, data=pieces[-1], flags=["END_HEADERS"]))
    c.answer(1)


@case("6.10")
def continuation_behind_a_whole_block(c):
    c.ask(1, POST, end=False)
    c.send(ContinuationFrame(1, data=c.block([("x-a", "b")]), flags=["END_HEADERS"]))
    c.connection_error(PROTOCOL)


@case("6.10")
def continuation_of_another_stream(c):
    c.send(HeadersFrame(1, data=c.block(GET)[:2], flags=["END_STREAM"]), ContinuationFrame(3, data=b"", flags=["END_HEADERS"]))
    c.connection_error(PROTOCOL)


@case("6.10")
def data_within_a_header_block(c):
    c.send(HeadersFrame(1, data=c.block(POST)), c.data(1, b"x"))
    c.connection_error(PROTOCOL)


# §8: requests.


@case("8.1")
def trailers(c):
    c.ask(1, POST, end=False)
    c.send(c.data(1, b"abc", end=False), c.headers(1, [("x-sum", "1")]))
    if c.answer(1).strip() != b"POST / 3":
        raise Failed("another answer")


@case("8.1")
def trailers_that_do_not_end_the_stream(c):
    c.ask(1, POST, end=False)
    c.send(c.data(1, b"abc", end=False), c.headers(1, [("x-sum", "1")], end=False))
    c.stream_error(1, PROTOCOL)


@case("8.1")
def pseudo_field_in_trailers(c):
    c.ask(1, POST, end=False)
    c.send(c.data(1, b"abc", end=False), c.headers(1, [(":path", "/b")]))
    c.stream_error(1, PROTOCOL)


def literal(name, value):
    """A field without any of the encoder's own care."""
    name, value = name.encode("latin-1"), value.encode("latin-1")
    return b"\0" + bytes([len(name)]) + name + bytes([len(value)]) + value


@cases(
    "8.2",
    capitals=("X-Capital", "1"),
    space_in_a_name=("x a", "1"),
    colon_in_a_name=("x:a", "1"),
    control_in_a_name=("x\x01a", "1"),
    delete_in_a_name=("x\x7fa", "1"),
    high_byte_in_a_name=("x\xe4a", "1"),
    empty_name=("", "1"),
    zero_in_a_value=("x-a", "a\0b"),
    line_feed_in_a_value=("x-a", "a\nb"),
    carriage_return_in_a_value=("x-a", "a\rb"),
    connection=("connection", "keep-alive"),
    proxy_connection=("proxy-connection", "keep-alive"),
    keep_alive=("keep-alive", "timeout=5"),
    transfer_encoding=("transfer-encoding", "chunked"),
    upgrade=("upgrade", "websocket"),
    te_other_than_trailers=("te", "gzip"),
    unknown_pseudo_field=(":other", "1"),
    pseudo_field_of_answers=(":status", "200"),
    pseudo_field_behind_others=(":authority", "a.test"),
)
def field_that_makes_a_request_malformed(c, field):
    block = c.block(GET if field[0] != ":authority" else GET[:3])
    c.ask(1, block=block + (literal("x-first", "1") if field[0] == ":authority" else b"") + literal(*field))
    c.stream_error(1, PROTOCOL)


@case("8.2.2")
def te_of_trailers(c):
    c.ask(1, GET + [("te", "trailers")])
    c.answer(1)


@case("8.2.3")
def cookies_may_come_apart(c):
    c.ask(1, GET + [("cookie", "a=1"), ("cookie", "b=2")])
    c.answer(1)


@cases(
    "8.3.1",
    no_method=GET[1:],
    no_scheme=[GET[0]] + GET[2:],
    no_path=GET[:2] + GET[3:],
    empty_path=GET[:2] + [(":path", "")] + GET[3:],
    two_methods=GET + [(":method", "GET")],
    two_schemes=GET + [(":scheme", "https")],
    two_paths=GET + [(":path", "/")],
    two_authorities=GET + [(":authority", "b.test")],
    path_that_is_none=GET[:2] + [(":path", "index")] + GET[3:],
    authority_with_a_user=GET[:3] + [(":authority", "me@a.test")],
    host_that_differs=GET + [("host", "b.test")],
    method_that_is_none=[(":method", "G T")] + GET[1:],
    connect_without_authority=[(":method", "CONNECT")],
    connect_with_a_path=[(":method", "CONNECT")] + GET[1:],
)
def request_that_is_malformed(c, headers):
    c.ask(1, headers)
    c.stream_error(1, PROTOCOL)


@case("8.3.1")
def asterisk_of_options(c):
    c.ask(1, [(":method", "OPTIONS"), (":scheme", "https"), (":path", "*"), (":authority", "a.test")])
    try:
        c.answer(1)
    except Failed as failed:
        if "status 4" not in str(failed):
            raise


@case("8.3.1")
def host_without_authority(c):
    c.ask(1, GET[:3] + [("host", "a.test")])
    c.answer(1)


@cases(
    "8.1.1",
    less=("10", [b"abc"]),
    more=("1", [b"abc"]),
    more_in_pieces=("4", [b"abc", b"def"]),
    nothing=("3", [b""]),
)
def body_of_another_length_than_said(c, what):
    length, pieces = what
    c.ask(1, POST + [("content-length", length)], end=False)
    c.send(*[c.data(1, piece, end=False) for piece in pieces[:-1]], c.data(1, pieces[-1]))
    c.stream_error(1, PROTOCOL)


@case("8.1.1")
def length_without_a_body(c):
    c.ask(1, POST + [("content-length", "3")])
    c.stream_error(1, PROTOCOL)


@cases("8.1.1", no_number="x", negative="-1", two_numbers="1, 2", plus="+1")
def length_that_is_none(c, value):
    c.ask(1, POST + [("content-length", value)], end=False)
    c.send(c.data(1, b"x"))
    c.stream_error(1, PROTOCOL)


@case("8.1.1")
def length_that_is_right(c):
    c.ask(1, POST + [("content-length", "6")], end=False)
    c.send(c.data(1, b"abc", end=False), c.data(1, b"def"))
    if c.answer(1).strip() != b"POST / 6":
        raise Failed("another answer")


@case("9.3.2")
def answer_to_head_has_no_body(c):
    c.ask(1, [(":method", "HEAD")] + GET[1:])
    if c.answer(1) != b"":
        raise Failed("a body")


@case("8.7")
def early_end_of_a_request_does_not_end_the_connection(c):
    for stream in range(1, 21, 2):
        c.ask(stream, POST, end=False)
        c.send(RstStreamFrame(stream, error_code=8))
    c.lives()


def run(target, act):
    inner = act
    try:
        c = Connection(target, begin=not getattr(inner, "bare", False))
    except (Failed, Ended, OSError) as failed:
        return f"no connection: {failed!r}"
    try:
        act(c)
        return "pass"
    except Failed as failed:
        return str(failed)
    except Ended:
        return "the connection ended"
    finally:
        c.tls.close()


if __name__ == "__main__":
    host, port, certificate, key, *only = sys.argv[1:]
    target = (host, int(port), certificate, key)
    print(json.dumps({name: run(target, act) for name, act in CASES.items() if not only or any(o in name for o in only)}))
