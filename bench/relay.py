"""A TCP relay between source and destination that counts what the source sends, and that can be cut."""

import socket
import threading

PIECE_BYTES = 256 << 10


class Relay:
    """A context. It listens on a free port of the loopback interface from the start on."""

    def __init__(self, target: tuple[str, int]):
        self.target = target
        self.sent_bytes = 0  # From whoever connects here to the target.
        self._cut = False
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]

    def __enter__(self) -> "Relay":
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_exception) -> None:
        # A shutdown wakes who waits in accept(); closing alone doesn't.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Both sides lose their connection, and no new one is made until heal()."""
        with self._lock:
            self._cut = True
            for one in self._open:
                shut_down(one)

    def heal(self) -> None:
        """New connections are let through again."""
        with self._lock:
            self._cut = False

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(self.target)
            except OSError:
                near.close()
                continue
            with self._lock:
                self._open |= {near, far}
                if self._cut:
                    shut_down(near)
                    shut_down(far)
            for one in (near, far):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            threading.Thread(target=self._serve, args=(near, far), daemon=True).start()

    def _serve(self, near: socket.socket, far: socket.socket) -> None:
        back = threading.Thread(target=self._pass, args=(far, near, False), daemon=True)
        back.start()
        self._pass(near, far, True)
        back.join()
        with self._lock:
            self._open -= {near, far}
        near.close()
        far.close()

    def _pass(self, source: socket.socket, sink: socket.socket, counted: bool) -> None:
        piece = bytearray(PIECE_BYTES)
        view = memoryview(piece)
        try:
            while count := source.recv_into(piece):
                if counted:
                    self.sent_bytes += count
                sink.sendall(view[:count])
        except OSError:
            pass  # The other direction, or a cut, has ended it.
        shut_down(source)
        shut_down(sink)


def shut_down(one: socket.socket) -> None:
    """Ends a connection in both directions."""
    try:
        one.shutdown(socket.SHUT_RDWR)
    except OSError:
        pass  # It is over already.
