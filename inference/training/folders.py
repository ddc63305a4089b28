"""Files and folders that appear whole or not at all, under names that no other process takes.

What is being written has a temporary name beside its place, which says whose it is: `sweep` removes
what dead processes left. Modes follow the umask, and symbolic links are not followed.
"""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

STATE = "state.safetensors"
TEMPORARY = re.compile(r"\.zoo-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}")


def _this_machine() -> str:
    """Eight letters for the machine, or the container, whose process numbers ours are."""
    space = ""
    with suppress(OSError):
        space = os.readlink("/proc/self/ns/pid")
    return hashlib.sha256(f"{socket.gethostname()} {space}".encode()).hexdigest()[:8]


def temporary(folder: Path) -> Path:
    """A name in a folder that says which process uses it."""
    return folder / f".zoo-{_this_machine()}-{os.getpid()}-{secrets.token_hex(4)}"


def sweep(folder: Path) -> None:
    """Remove what processes of this machine left half written in a folder when they died."""
    with suppress(OSError):
        for path in list(folder.iterdir()):
            name = TEMPORARY.fullmatch(path.name)
            if name is None or name[1] != _this_machine() or _alive(int(name[2])):
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


def write_whole(path: Path, data: bytes, before: Path | None = None) -> None:
    """Put a file at `path`, on the disk, in place of what is there; that is kept at `before`."""
    inside = temporary(path.parent)
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
        with open(os.open(inside, flags, 0o666), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        if before is not None and os.path.lexists(path):
            os.replace(path, before)
        os.replace(inside, path)
    except BaseException:
        inside.unlink(missing_ok=True)
        raise
    _on_disk(path.parent)


def _on_disk(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    with suppress(OSError):
        number = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(number)
        finally:
            os.close(number)


def read_whole(path: Path) -> bytes:
    """The content of a regular file that is no symbolic link.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is something else, or cannot be read.
    """
    try:
        number = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: expected a file, found none.") from None
    except OSError as error:
        link = "; a symbolic link is not followed" if path.is_symlink() else ""
        raise ValueError(f"{path}: expected a file to read, got: {error.strerror}{link}.") from None
    if not stat.S_ISREG(os.fstat(number).st_mode):
        os.close(number)
        raise ValueError(f"{path}: expected a regular file, found something else.")
    with open(number, "rb") as file:
        return file.read()


def subfolder(folder: Path, name: str) -> Path:
    """A folder inside another, made where it is missing.

    Raises:
        ValueError: there is something else under this name, such as a symbolic link.
    """
    path = folder / name
    with suppress(FileExistsError):
        path.mkdir()
    if path.is_symlink() or not path.is_dir():
        raise ValueError(f"{path}: expected a folder, found something else. Move it away.")
    return path


@contextmanager
def whole_folder(path: str | Path) -> Iterator[Path]:
    """A new folder that appears at `path` complete, or not at all.

    Yields a temporary sibling to write into; it takes its name when the block ends well, and is
    removed with all that was made for it when it does not.

    Raises:
        FileExistsError: there is something at `path` already.
        PermissionError: its parent cannot be written.
    """
    path = Path(path)
    taken = FileExistsError(f"{path} exists already; nothing is overwritten. Name a new one.")
    if os.path.lexists(path):
        raise taken
    missing = [p for p in path.parents if not p.exists()]  # the deepest first
    inside = temporary(path.parent)
    try:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            sweep(path.parent)
            inside.mkdir()
        except OSError as error:
            raise PermissionError(
                f"{path.parent} cannot be written ({error.strerror}). Choose another folder."
            ) from error
        yield inside
        try:
            path.mkdir()  # whoever makes it owns the name
        except FileExistsError:
            raise taken from None
        os.rename(inside, path)
        _on_disk(path.parent)
    except BaseException:
        shutil.rmtree(inside, ignore_errors=True)
        remove_empty(missing)
        raise


_OURS: set[Path] = set()  # that this process has made


def reserve(names: Iterable[Path], files: Mapping[str, bytes]) -> Path:
    """Make a folder with these files under the first of some names that is free.

    Raises:
        FileExistsError: none is.
        PermissionError: their parent cannot be written.
    """
    for path in names:
        try:
            with whole_folder(path) as inside:
                for name, data in files.items():
                    write_whole(inside / name, data)
        except FileExistsError as error:
            taken = error
            continue
        _OURS.add(path.resolve())
        return path
    raise taken


@contextmanager
def claimed(folder: str | Path | None, own: Path | None) -> Iterator[Path | None]:
    """A folder for a state, made now: no other run has it. One that stays empty is removed.

    Args:
        folder: its name; None for none.
        own: the folder of the run that goes on, which may be the same.

    Raises:
        FileExistsError: there is something under this name that this process has not reserved, or
            another run is writing into it.
        PermissionError: its parent cannot be written.
    """
    if folder is None:
        yield None
        return
    path = Path(folder).expanduser().resolve()
    new = [p for p in (path, *path.parents) if not p.exists()]
    if path != own and (path not in _OURS or (path / STATE).exists()):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            raise FileExistsError(
                f"folder: {path} exists already. Name a new one, or go on from the run in it with "
                "resume= as well."
            ) from None
        except OSError as error:
            raise PermissionError(
                f"folder: {path} cannot be written ({error.strerror}). Choose another."
            ) from error
        _OURS.add(path)
    try:
        with _alone_in(path):
            yield path
    except BaseException:
        remove_empty(new)
        raise


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Hold a lock on a folder, which ends with the process however that ends.

    Raises:
        FileExistsError: another run holds it.
    """
    if fcntl is None:
        yield
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(number, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise FileExistsError(
                f"folder: another run is writing into {folder} just now. Wait for its end, or name "
                "a new one."
            ) from None
        except OSError:  # a file system without locks
            pass
        yield
    finally:
        os.close(number)


def remove_empty(folders: list[Path]) -> None:
    """Remove those folders that hold nothing, in this order."""
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()
