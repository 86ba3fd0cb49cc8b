"""The interpreter of a session: runs its Python executions one after the other in a real ``__main__`` module.

The agent starts it with the control socket as descriptor 4 and, as descriptor 5, eight shared bytes: the sequence number
of the execution that the agent has last interrupted. Standard output and standard error are pipes to the agent.

Frames from the agent: a little-endian u32 length, one byte of operation, the rest.
    1  execute: u64 sequence number, u8 detect (is the language open?), the source text
    2  environment: NAME=VALUE, separated by NUL; replaces what the last such frame set
    3  working directory: its path; steps into it
Answers, always 21 bytes: one byte of kind, u64 sequence number, i32 exit status, u64 processor time in microseconds.
    R  ready        B  the execution begins        F  it has finished        S  it has not: the text is for a shell
    P  the language was open, and is Python
"""

import _signal
import builtins
import codecs
import fcntl
import io
import os
import resource
import select
import sys
import time

import __main__

import _instavm_language as language

CONTROL = 4
TARGET = 5
WORKER = os.getpid()
OWN_FILE = "<instavm>"
# These make the first traceback, the first `!command` and most programs quick, for little memory. They are loaded when
# nothing has been asked for so long: until then the first answer matters more, here and in VMs beside this one.
WANTED_SOON = ["linecache", "traceback", "subprocess", "json"]
IDLE_MILLISECONDS = 500
# The exit status when the code has closed the control socket.
LOST = 70
STREAMS = ((1, "stdout"), (2, "stderr"))
# How long an interrupt of the last execution may lag behind the start of the next.
STALE_SECONDS = 0.5
# What is kept of past source texts, for tracebacks.
SOURCES_KEPT = 1000
SOURCE_CHARACTERS_KEPT = 16 * 1024 * 1024

CO_COROUTINE = 0x80
FUTURE_FEATURES = 0x1FE0000
# Python 3.11 has it.
GROUP = getattr(builtins, "BaseExceptionGroup", ())

# Bound once, so that code which patches these modules does not patch the worker.
_read, _write, _exit, _getpid, _pread, _fstat = os.read, os.write, os._exit, os.getpid, os.pread, os.fstat
_poll = select.poll
OWN_PATH = [path for path in sys.path if path]
_dup2, _chdir, _getcwdb, _stat = os.dup2, os.chdir, os.getcwdb, os.stat
IDENTITY = (_fstat(CONTROL).st_dev, _fstat(CONTROL).st_ino)


class State:
    running = False
    interrupted = False
    sequence = 0
    began = 0.0
    count = 0
    flags = language.TOP_LEVEL_AWAIT
    loop = None
    environment = {}
    workdir = b""
    sources = []
    source_characters = 0
    # The texts for `linecache`, until it is loaded.
    texts = {}
    # Copies of the standard descriptors, and what they are.
    copies = {}


class StandardStream(io.FileIO):
    """An unbuffered descriptor that writes everything it is given, whatever the other end does."""

    def write(self, data):
        with memoryview(data) as whole, whole.cast("B") as view:
            done = 0
            while done < len(view):
                written = super().write(view[done:])
                if written is None:  # somebody made the pipe non-blocking
                    select.select([], [self.fileno()], [])
                    continue
                done += written
            return done


def encode_anything(error):
    """Undecodable bytes come out as they came in; every other lone surrogate as its escape. Printing never fails."""
    if not isinstance(error, UnicodeEncodeError):
        return codecs.strict_errors(error)
    out = bytearray()
    for character in error.object[error.start : error.end]:
        code = ord(character)
        if 0xDC80 <= code <= 0xDCFF:
            out.append(code - 0xDC00)
        else:
            out += character.encode("ascii", "backslashreplace")
    return bytes(out), error.end


def open_stream(descriptor, name):
    raw = StandardStream(descriptor, "wb", closefd=False)
    raw.name = f"<{name}>"
    text = io.TextIOWrapper(raw, "utf-8", "instavm", newline="\n", write_through=True)
    text.mode = "w"
    if getattr(sys, name) is getattr(sys, f"__{name}__"):
        setattr(sys, name, text)
    setattr(sys, f"__{name}__", text)


def identity(descriptor):
    try:
        status = _fstat(descriptor)
    except OSError:
        return None
    return status.st_dev, status.st_ino


def open_streams():
    codecs.register_error("instavm", encode_anything)
    for descriptor, name in STREAMS:
        open_stream(descriptor, name)
    # Copies far from what a program usually closes.
    lowest = max(min(resource.getrlimit(resource.RLIMIT_NOFILE)[0], 1024) - 8, 8)
    for descriptor in range(3):
        try:
            copy = fcntl.fcntl(descriptor, fcntl.F_DUPFD_CLOEXEC, lowest)
        except OSError:
            continue
        State.copies[descriptor] = (copy, identity(descriptor))


def restore_streams():
    """Puts the standard descriptors back where the text has closed or replaced them: the next one needs them."""
    for descriptor in range(3):
        copy, wanted = State.copies.get(descriptor, (None, None))
        found = identity(descriptor)
        if found is not None and (wanted is None or found == wanted):
            continue
        if wanted is None or identity(copy) != wanted:
            _exit(LOST)
        _dup2(copy, descriptor)
    for descriptor, name in STREAMS:
        if getattr(sys, f"__{name}__").closed:
            open_stream(descriptor, name)


def interrupt_target():
    """The sequence number of the execution that the agent has last interrupted, or 0."""
    try:
        return int.from_bytes(_pread(TARGET, 8, 0), "little")
    except OSError:
        return 0


def on_interrupt(signum, frame):
    if not State.running:
        return
    target = interrupt_target()
    if target and target != State.sequence and time.monotonic() - State.began < STALE_SECONDS:
        return
    State.interrupted = True
    raise KeyboardInterrupt


def after_fork():
    """A child of the code is no worker: it must neither answer nor read in its place."""
    for descriptor in (CONTROL, TARGET):
        try:
            os.close(descriptor)
        except OSError:
            pass
    if _signal.getsignal(_signal.SIGINT) is on_interrupt:
        _signal.signal(_signal.SIGINT, _signal.default_int_handler)


# --- what IPython's lines call -------------------------------------------------------------------------------------


def invalidate_caches():
    for finder in sys.path_importer_cache.values():
        if hasattr(finder, "invalidate_caches"):
            finder.invalidate_caches()


def run_shell(command, **options):
    subprocess = load("subprocess")
    try:
        try:
            done = subprocess.run(["bash", "-c", "--", command], **options)
        except FileNotFoundError:
            done = subprocess.run(["sh", "-c", "--", command], **options)
    except KeyboardInterrupt:
        # Where inside of `subprocess` it came is no business of the text's.
        raise KeyboardInterrupt from None
    __main__.__dict__["_exit_code"] = done.returncode
    invalidate_caches()
    return done


def shell(command):
    """`!command`: its output goes where Python's goes."""
    run_shell(command)


def shell_lines(command):
    """`name = !command`: the lines of its standard output."""
    done = run_shell(command, stdout=-1)  # a pipe
    return done.stdout.decode("utf-8", "surrogateescape").splitlines()


def pip(arguments):
    """`%pip arguments`"""
    import shlex

    shell(f"{shlex.quote(sys.executable)} -m pip {arguments}")


def change_directory(path):
    """`%cd path`"""
    path = path.strip()
    if len(path) > 1 and path[0] == path[-1] and path[0] in "'\"":
        path = path[1:-1]
    os.chdir(os.path.expanduser(path or "~"))


# --- running ------------------------------------------------------------------------------------------------------


def cached(source, filename):
    """A text as `linecache` has files."""
    lines = source.replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return len(source), None, [line + "\n" for line in lines], filename


def remember(filename, source):
    """Lets tracebacks and `inspect` show the source, within bounds."""
    linecache = sys.modules.get("linecache")
    if linecache is None:
        State.texts[filename] = source
    else:
        linecache.cache[filename] = cached(source, filename)
    State.sources.append((filename, len(source)))
    State.source_characters += len(source)
    while len(State.sources) > 1 and (
        len(State.sources) > SOURCES_KEPT or State.source_characters > SOURCE_CHARACTERS_KEPT
    ):
        old, size = State.sources.pop(0)
        State.source_characters -= size
        State.texts.pop(old, None)
        if linecache is not None:
            linecache.cache.pop(old, None)


class SourcesLoader:
    """Loads `linecache`, whoever asks for it, and tells it the sources so far."""

    def __init__(self, loader):
        self.loader = loader

    def create_module(self, spec):
        return self.loader.create_module(spec)

    def exec_module(self, module):
        module.__spec__.loader = module.__loader__ = self.loader
        self.loader.exec_module(module)
        for filename, source in State.texts.items():
            module.cache[filename] = cached(source, filename)
        State.texts.clear()


class SourcesFinder:
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != "linecache":
            return None
        for finder in sys.meta_path:
            if finder is cls or not hasattr(finder, "find_spec"):
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = SourcesLoader(spec.loader)
                return spec
        return None


def load(name):
    """A module of Python's own, whatever the code has in its working directory."""
    kept = sys.path[:]
    sys.path[:] = OWN_PATH
    try:
        return __import__(name)
    finally:
        sys.path[:] = kept


def run_awaiting(coroutine):
    import asyncio

    if State.loop is None or State.loop.is_closed():
        State.loop = asyncio.new_event_loop()
    loop = State.loop
    asyncio.set_event_loop(loop)
    task = loop.create_task(coroutine)
    try:
        loop.run_until_complete(task)
    except BaseException:
        if not task.done():
            task.cancel()
            loop.run_until_complete(asyncio.wait([task]))
        raise


def run(code):
    result = eval(code, __main__.__dict__)
    if code.co_flags & CO_COROUTINE:
        run_awaiting(result)


def own_frames_cut(trace):
    """The traceback without the frames of this file: those at its beginning, and one in the middle with all below it,
    which the text has not written."""
    while trace is not None and trace.tb_frame.f_code.co_filename == OWN_FILE:
        trace = trace.tb_next
    entry = trace
    while entry is not None and entry.tb_next is not None:
        if entry.tb_next.tb_frame.f_code.co_filename == OWN_FILE:
            entry.tb_next = None
        entry = entry.tb_next
    return trace


def text_onwards(trace, filename):
    """The traceback from the text's first frame on, where it has one."""
    start = trace
    while start is not None and start.tb_frame.f_code.co_filename != filename:
        start = start.tb_next
    return start or trace


def clean(error, filename):
    """Cuts this file's frames out of the exception and of all that it is chained to or made of."""
    error.__traceback__ = text_onwards(error.__traceback__, filename)
    seen = set()
    waiting = [error]
    while waiting:
        one = waiting.pop()
        if not isinstance(one, BaseException) or id(one) in seen:
            continue
        seen.add(id(one))
        one.__traceback__ = own_frames_cut(one.__traceback__)
        waiting += (one.__cause__, one.__context__)
        if isinstance(one, GROUP):
            waiting += one.exceptions


def suggestion(error):
    """The `Did you mean` that older Pythons compute only where they print by themselves."""
    if sys.version_info >= (3, 12) or not isinstance(error, (NameError, AttributeError)):
        return ""
    kept, sys.stderr = sys.stderr, io.StringIO()
    try:
        sys.__excepthook__(type(error), error, error.__traceback__)
        last = sys.stderr.getvalue().rstrip().rsplit("\n", 1)[-1]
    finally:
        sys.stderr = kept
    start = last.rfind(". Did you mean: '")
    return last[start:] if start >= 0 else ""


def show(error, filename):
    traceback = load("traceback")
    clean(error, filename)
    trace = error.__traceback__
    sys.last_type, sys.last_value, sys.last_traceback = type(error), error, trace
    if sys.excepthook is not sys.__excepthook__:
        sys.excepthook(type(error), error, trace)
        return
    text = traceback.TracebackException(type(error), error, trace)
    hint = suggestion(error)
    if hint and isinstance(getattr(text, "_str", None), str):
        text._str += hint
    sys.stderr.write("".join(text.format()))


def status_of_exit(error):
    """What a Python process would end with."""
    if error.code is None:
        return 0
    if isinstance(error.code, int):
        return error.code & 0xFF
    print(error.code, file=sys.stderr)
    return 1


def outcome(error, filename):
    """Shows how the text ended and gives the exit status."""
    if error is None:
        return 0
    try:
        if isinstance(error, SystemExit):
            return status_of_exit(error)
        show(error, filename)
    except BaseException as second:
        try:
            name = type(error).__qualname__
            os.write(2, f"{name}: (the traceback could not be shown: {type(second).__name__})\n".encode())
        except BaseException:
            pass
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def flush():
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except BaseException:
            pass
    # C code that prints through stdio; it can only be there when ctypes or an extension is.
    ctypes = sys.modules.get("ctypes")
    if ctypes is not None:
        try:
            ctypes.pythonapi.fflush(None)
        except BaseException:
            pass


def is_known(name):
    return name in __main__.__dict__ or hasattr(builtins, name)


def attempt(detect, source, filename):
    """Runs the text. Gives the error that ended it, or None; True when it is for a shell."""
    error = None
    try:
        try:
            try:
                State.running = True
                if detect and language.is_bare_command(source, filename, State.flags, is_known):
                    return True
                code = language.compile_text(source, filename, State.flags)
            except (SyntaxError, ValueError, OverflowError, RecursionError) as caught:
                if detect and language.is_shell(source):
                    return True
                error = caught
                error.__traceback__ = None
                error.__context__ = None
            else:
                if detect:
                    answer(b"P", State.sequence, 0, 0)
                State.flags |= code.co_flags & FUTURE_FEATURES
                remember(filename, source)
                run(code)
                if not State.interrupted and interrupt_target() == State.sequence:
                    # The signal came while Python ignored it, as it does in os.system.
                    raise KeyboardInterrupt
        finally:
            State.running = False
    except BaseException as caught:
        error = caught
    return error


def processor_micros():
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time_ns() // 1000 + int((children.ru_utime + children.ru_stime) * 1e6)


def execute(sequence, detect, source):
    State.count += 1
    filename = f"<execution {State.count}>"
    start = processor_micros()
    answer(b"B", sequence, 0, 0)
    follow_workdir()
    State.sequence, State.began, State.interrupted = sequence, time.monotonic(), False
    error = attempt(detect, source, filename)
    if error is True:
        State.count -= 1
        answer(b"S", sequence, 0, processor_micros() - start)
        return
    restore_streams()
    status = 1
    try:
        try:
            State.running = True
            status = outcome(error, filename)
            error = None
            flush()
        finally:
            State.running = False
    except KeyboardInterrupt:
        status = 130
    if _getpid() != WORKER:
        _exit(status)
    answer(b"F", sequence, status, processor_micros() - start)


# --- talking to the agent -----------------------------------------------------------------------------------------


def control_is_lost():
    """Has the code closed the control socket, or put something else in its place?"""
    return identity(CONTROL) != IDENTITY


def answer(kind, sequence, status, micros):
    if control_is_lost():
        _exit(LOST)
    frame = kind + sequence.to_bytes(8, "little") + status.to_bytes(4, "little", signed=True)
    frame += max(micros, 0).to_bytes(8, "little")
    while frame:
        frame = frame[_write(CONTROL, frame) :]


def receive(size):
    data = bytearray()
    while len(data) < size:
        part = _read(CONTROL, min(size - len(data), 1 << 20))
        if not part:
            _exit(0)  # the agent is gone
        data += part
    return data


def set_environment(payload):
    text = bytes(payload).decode("utf-8", "surrogateescape")
    new = dict(item.split("=", 1) for item in text.split("\0") if item)
    for name in State.environment:
        if name not in new:
            os.environ.pop(name, None)
    os.environ.update(new)
    State.environment = new


def set_workdir(path):
    State.workdir = path
    try:
        _chdir(path)
        State.workdir = _getcwdb()
    except OSError:
        pass  # it was made a moment ago, and is gone: code runs where it is


def follow_workdir():
    """Something may have been mounted on the working directory since the interpreter stepped into it."""
    try:
        if _getcwdb() == State.workdir:
            here, there = _stat("."), _stat(State.workdir)
            if (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino):
                _chdir(State.workdir)
    except OSError:
        pass  # the code stands in a directory that is gone


def is_idle():
    """Has nothing been asked for some time?"""
    waiting = _poll()
    waiting.register(CONTROL, select.POLLIN)
    return not waiting.poll(IDLE_MILLISECONDS)


def load_ahead():
    """Loads what is wanted soon, one module at a time, while nothing is asked."""
    while WANTED_SOON and is_idle():
        try:
            load(WANTED_SOON.pop(0))
        except BaseException:
            pass  # whoever asks for it will see


def serve():
    while True:
        if WANTED_SOON:
            load_ahead()
        size = int.from_bytes(receive(4), "little")
        payload = receive(size)
        if payload[0] == 2:
            set_environment(payload[1:])
        elif payload[0] == 3:
            set_workdir(bytes(payload[1:]))
        else:
            sequence = int.from_bytes(payload[1:9], "little")
            detect, source = payload[9] != 0, payload[10:].decode("utf-8")
            payload = None
            execute(sequence, detect, source)
            source = None


def main():
    for descriptor in (CONTROL, TARGET):
        os.set_inheritable(descriptor, False)
    os.register_at_fork(after_in_child=after_fork)
    _signal.signal(_signal.SIGINT, on_interrupt)
    open_streams()
    if "linecache" not in sys.modules:
        sys.meta_path.insert(0, SourcesFinder)
    try:
        State.workdir = _getcwdb()
    except OSError:
        pass
    sys.argv = [""]
    keep = ("__name__", "__doc__", "__package__", "__loader__", "__spec__", "__builtins__")
    for name in [name for name in __main__.__dict__ if name not in keep]:
        del __main__.__dict__[name]
    answer(b"R", 0, 0, 0)
    try:
        serve()
    except OSError:
        _exit(LOST)


main()
