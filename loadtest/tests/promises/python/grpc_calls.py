"""gRPC calls with grpcio: grpc_calls.py HOST:PORT CASE…. Each case is an assertion; the first that does not hold ends it."""

import sys
import threading
import time

import grpc

LIMIT = 16 << 20
PATIENCE = 20


def channel(address):
    options = [
        ("grpc.max_receive_message_length", LIMIT),
        ("grpc.max_send_message_length", LIMIT),
        # What is asserted is what came back, not what the library made of a second try.
        ("grpc.enable_retries", 0),
    ]
    return grpc.insecure_channel(address, options=options)


class Stub:
    def __init__(self, on):
        def path(name):
            return f"/postern.Test/{name}"

        self.echo = on.unary_unary(path("Echo"))
        self.wait = on.unary_unary(path("Wait"))
        self.was_cancelled = on.unary_unary(path("WasCancelled"))
        self.fail = on.unary_unary(path("Fail"))
        self.nothing = on.unary_unary(path("Nothing"))
        self.late_failure = on.unary_stream(path("LateFailure"))
        self.count = on.unary_stream(path("Count"))
        self.endless = on.unary_stream(path("Endless"))
        self.total = on.stream_unary(path("Total"))
        self.chat = on.stream_stream(path("Chat"))


def error_of(call):
    try:
        answer = call()
    except grpc.RpcError as error:
        return error
    raise AssertionError(f"no error, but {answer!r}")


def eventually_cancelled(stub, name):
    deadline = time.monotonic() + PATIENCE
    while (said := stub.was_cancelled(name.encode(), timeout=PATIENCE)) == b"unknown":
        assert time.monotonic() < deadline, "the server goes on"
        time.sleep(0.02)
    assert said == b"yes", said


def unary(stub):
    assert stub.echo(b"hello", timeout=PATIENCE) == b"hello"
    assert stub.echo(b"", timeout=PATIENCE) == b""


def metadata(stub):
    raw = bytes(range(256))
    sent = (("x-plain", "one"), ("x-plain-two", "a, b;c"), ("x-raw-bin", raw), ("x-forwarded-client-cert", "By=me"))
    _, call = stub.echo.with_call(b"m", metadata=sent, timeout=PATIENCE)
    initial, trailing = dict(call.initial_metadata()), dict(call.trailing_metadata())
    assert initial["seen-x-plain"] == "one", initial
    assert initial["seen-x-plain-two"] == "a, b;c", initial
    assert trailing["x-raw-back-bin"] == raw[::-1], trailing
    xfcc = initial["seen-xfcc"]
    assert xfcc.startswith("By=spiffe://mesh.test/ns/demo/sa/server;Hash="), xfcc
    assert xfcc.endswith(";URI=spiffe://mesh.test/ns/demo/sa/client"), xfcc


def server_streaming(stub):
    got = [int(message) for message in stub.count(b"1000", timeout=PATIENCE)]
    assert got == list(range(1000)), got[:5]


def client_streaming(stub):
    sizes = [0, 1, 10, 100_000, 3]
    assert stub.total((b"x" * size for size in sizes), timeout=PATIENCE) == str(sum(sizes)).encode()


def bidi(stub):
    """Each message is sent only once the answer to the one before has come: nothing may wait for more."""
    turn, messages = threading.Semaphore(1), 50

    def send():
        for number in range(messages):
            assert turn.acquire(timeout=PATIENCE)
            yield b"%d" % number

    for number, answer in enumerate(stub.chat(send(), timeout=PATIENCE)):
        assert answer == b"re: %d" % number, answer
        turn.release()
    assert number == messages - 1


def interleaved(stub):
    """Many streams of every kind at once on one connection."""
    chats = [stub.chat((b"%d" % n for n in range(100)), timeout=PATIENCE) for _ in range(10)]
    counts = [stub.count(b"200", timeout=PATIENCE) for _ in range(10)]
    for _ in range(100):
        for chat in chats:
            next(chat)
        for count in counts:
            next(count)
            next(count)
    assert all(list(stream) == [] for stream in chats + counts)


def deadline(stub):
    error = error_of(lambda: stub.wait(b"15", timeout=0.5, metadata=(("x-call", "late"),)))
    assert error.code() == grpc.StatusCode.DEADLINE_EXCEEDED, error
    eventually_cancelled(stub, "late")


def cancellation(stub):
    call = stub.wait.future(b"15", metadata=(("x-call", "unwanted"),))
    # It must have begun on the other side, else there is nothing to cancel there; another call takes the same way.
    stub.echo(b"", timeout=PATIENCE)
    time.sleep(0.1)
    call.cancel()
    eventually_cancelled(stub, "unwanted")
    stream = stub.endless(b"", metadata=(("x-call", "unread"),))
    assert next(stream) == b"."
    stream.cancel()
    eventually_cancelled(stub, "unread")


def trailers_only(stub):
    error = error_of(lambda: stub.fail("kein Gerät, 100 %".encode(), timeout=PATIENCE))
    assert error.code() == grpc.StatusCode.NOT_FOUND, error
    assert error.details() == "kein Gerät, 100 %", error.details()
    trailing = dict(error.trailing_metadata())
    assert trailing["grpc-status-details-bin"] == b"\x08\x05details", trailing
    error = error_of(lambda: stub.nothing(b"", timeout=PATIENCE))
    assert error.code() == grpc.StatusCode.UNIMPLEMENTED, error


def late_failure(stub):
    stream, got = stub.late_failure(b"", timeout=PATIENCE), []
    error = error_of(lambda: [got.append(message) for message in stream])
    assert (got, error.code(), error.details()) == ([b"one", b"two"], grpc.StatusCode.DATA_LOSS, "midway"), error


def large(stub):
    message = bytes(range(256)) * (4 << 12)
    assert len(message) == 4 << 20
    assert stub.echo(message, timeout=PATIENCE) == message


def many(stub):
    calls = [stub.wait.future(b"0.2", timeout=PATIENCE) for _ in range(200)]
    assert all(call.result() == b"waited" for call in calls)


def denied(stub):
    error = error_of(lambda: stub.echo(b"hello", timeout=PATIENCE))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error
    metadata = dict(error.trailing_metadata()) | dict(error.initial_metadata())
    assert len(metadata["x-postern-denial"]) == 26, metadata
    print(metadata["x-postern-denial"])
    error = error_of(lambda: list(stub.chat(iter([b"a", b"b"]), timeout=PATIENCE)))
    assert error.code() == grpc.StatusCode.PERMISSION_DENIED, error


def unavailable(stub):
    error = error_of(lambda: stub.echo(b"hello", timeout=PATIENCE))
    assert error.code() == grpc.StatusCode.UNAVAILABLE, error
    print(error.details())


def held_open(stub):
    """Streams until something ends it: prints `open`, then how it ended."""
    stream = stub.endless(b"", timeout=PATIENCE)
    next(stream)
    print("open", flush=True)
    error = error_of(lambda: [None for _ in stream])
    print(error.code().name, flush=True)


if __name__ == "__main__":
    with channel(sys.argv[1]) as on:
        for case in sys.argv[2:]:
            began = time.monotonic()
            globals()[case](Stub(on))
            print(f"{case}: {time.monotonic() - began:.2f} s", file=sys.stderr)
