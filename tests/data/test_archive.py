"""Archives as published and as an attacker makes them, built with the standard library."""

import gzip
import io
import os
import resource
import signal
import stat
import subprocess
import sys
import tarfile
import time
import zipfile
from pathlib import Path

import pytest
from tiny import PEAK

from cvtrain.data.archive import extract
from cvtrain.errors import DataError, MachineError

FILES = {
    "set/empty": b"",
    "set/train/block": bytes(range(256)) * 4,  # two whole blocks of a tar
    "set/train/large": os.urandom(700_001),
    "set/val/" + "n" * 180: b"a name too long for a plain header",
    "set/val/žluťoučký kůň": b"\x00\xff",
}


def info(name: str, **fields: object) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(member, field, value)
    return member


def tar(path: Path, *members: tuple[tarfile.TarInfo, bytes], **options: int) -> Path:
    mode = "w:gz" if path.name.endswith("gz") else "w"
    with tarfile.open(path, mode, **options) as file:  # type: ignore[call-overload]
        for member, content in members:
            if content:
                member.size = len(content)
            file.addfile(member, io.BytesIO(content) if content else None)
    return path


def zipped(path: Path, *members: tuple[str | zipfile.ZipInfo, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for member, content in members:
            file.writestr(member, content)
    return path


def with_attributes(name: str, mode: int) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo(name)
    member.external_attr = mode << 16
    return member


def below(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def refuse(archive: Path, text: str = "", **limits: int) -> None:
    """It is refused, in one line that holds `text`, and nothing is left, here or anywhere near."""
    root = archive.parent
    before = sorted(root.parent.rglob("*"))
    with pytest.raises(DataError) as error:
        extract(archive, root / "out", **limits)
    assert (error.value.code, error.value.name) == (3, "ARCHIVE")
    assert text in error.value.line()
    assert str(archive) in error.value.line()
    assert sorted(root.parent.rglob("*")) == before


@pytest.fixture
def box(tmp_path: Path) -> Path:
    """A directory within the test's own, so that what leads out of it can be seen."""
    (tmp_path / "box").mkdir()
    return tmp_path / "box"


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz", ".zip"])
def test_what_went_in_comes_out(box: Path, suffix: str) -> None:
    archive = box / f"data{suffix}"
    if suffix == ".zip":
        zipped(archive, ("set/", b""), ("set/none/", b""), *FILES.items())
    else:
        folders = [(info(name, type=tarfile.DIRTYPE, mode=0o2755), b"") for name in (".", "./set")]
        none = (info("set/none", type=tarfile.DIRTYPE), b"")
        tar(archive, *folders, none, *((info(f"./{name}"), data) for name, data in FILES.items()))
    extract(archive, box / "new" / "out")
    assert below(box / "new") == {f"out/{name}": data for name, data in FILES.items()}
    assert (box / "new/out/set/none").is_dir()
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE((box / "new/out").stat().st_mode) == 0o777 & ~umask


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_every_format_of_tar_that_gnu_tar_reads(box: Path, form: int) -> None:
    files = {name: data for name, data in FILES.items() if "n" * 180 not in name or form}
    archive = tar(box / "a.tar.gz", *((info(n), d) for n, d in files.items()), format=form)
    extract(archive, box / "out")
    subprocess.run(["tar", "xf", archive], cwd=box, check=True)
    assert below(box / "out") == {f"set/{n}": d for n, d in below(box / "set").items()} == files


LINK = {"type": tarfile.SYMTYPE, "linkname": "train"}
HOSTILE_TAR: dict[str, tuple[tarfile.TarInfo, bytes]] = {
    "parent": (info("../evil"), b"x"),
    "parent-in-the-middle": (info("a/../../evil"), b"x"),
    "parent-that-stays": (info("a/../evil"), b"x"),
    "absolute": (info("/tmp/evil"), b"x"),
    "absolute-folder": (info("//evil", type=tarfile.DIRTYPE), b""),
    "symlink-inside": (info("evil", **LINK), b""),
    "symlink-out": (info("evil", type=tarfile.SYMTYPE, linkname="/etc"), b""),
    "hardlink": (info("evil", type=tarfile.LNKTYPE, linkname="good"), b""),
    "hardlink-out": (info("evil", type=tarfile.LNKTYPE, linkname="../../etc/passwd"), b""),
    "fifo": (info("evil", type=tarfile.FIFOTYPE), b""),
    "character-device": (info("evil", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
    "block-device": (info("evil", type=tarfile.BLKTYPE, devmajor=8, devminor=0), b""),
    "unknown-type": (info("evil", type=b"Z"), b"x"),
    "setuid": (info("evil", mode=0o4755), b"x"),
    "setgid": (info("evil", mode=0o2755), b"x"),
    "twice": (info("good"), b"x"),
    "below-a-file": (info("good/evil"), b"x"),
    "name-too-long": (info("evil" * 100), b"x"),
    "too-deep": (info("evil/" * 700 + "x"), b"x"),
    "zero-byte": (info("x", pax_headers={"path": "evil\0x"}), b"x"),
}


@pytest.mark.fault("S3")
@pytest.mark.parametrize("kind", HOSTILE_TAR)
@pytest.mark.parametrize("python", ["3.11.0", "3.11.4"])
def test_a_hostile_member_of_a_tar(
    box: Path, kind: str, python: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if python == "3.11.0":  # had no such filter: our own check has to be enough
        monkeypatch.delattr(tarfile, "data_filter")
    good = (info("good"), b"good")
    archive = tar(box / "a.tar.gz", good, HOSTILE_TAR[kind], good, format=tarfile.PAX_FORMAT)
    refuse(archive, "good" if kind == "twice" else "evil")


@pytest.mark.fault("S3")
@pytest.mark.parametrize(
    "member",
    [
        "../evil",
        "a/../../evil",
        "/evil",
        with_attributes("evil", stat.S_IFLNK | 0o777),
        with_attributes("evil", stat.S_IFIFO | 0o644),
        with_attributes("evil", stat.S_IFREG | 0o4755),
        "good",
    ],
    ids=["parent", "in-the-middle", "absolute", "symlink", "fifo", "setuid", "twice"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_a_hostile_member_of_a_zip(box: Path, member: str | zipfile.ZipInfo) -> None:
    archive = zipped(box / "a.zip", ("good", b"good"), (member, b"/etc"))
    refuse(archive, member if isinstance(member, str) else "evil")


@pytest.mark.fault("S3")
@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_no_more_bytes_than_allowed(box: Path, suffix: str) -> None:
    half = bytes(500_000)
    archive = box / f"bomb{suffix}"
    if suffix == ".zip":
        zipped(archive, ("one", half), ("two", half))
    else:
        tar(archive, (info("one"), half), (info("two"), half))
    assert archive.stat().st_size < 10_000
    refuse(archive, "two", max_bytes=999_999)
    extract(archive, box / "out", max_bytes=1_000_000)
    assert below(box / "out") == {"one": half, "two": half}


@pytest.mark.fault("S3")
@pytest.mark.parametrize("suffix", [".tar", ".zip"])
def test_no_more_members_than_allowed(box: Path, suffix: str) -> None:
    names = [f"{number}" for number in range(1001)]
    archive = box / f"many{suffix}"
    if suffix == ".zip":
        zipped(archive, *((name, b"") for name in names))
    else:
        tar(archive, *((info(name, type=tarfile.DIRTYPE), b"") for name in names))
    refuse(archive, "1000", max_members=1000)
    extract(archive, box / "out", max_members=1001)
    assert len(list((box / "out").iterdir())) == 1001


@pytest.mark.fault("S3")
def test_a_zip_whose_header_lies(box: Path) -> None:
    """One that says 10 bytes and holds a megabyte, one that says more than it holds."""
    for content, said in ((bytes(1_000_000), 10), (b"short", 1_000_000)):
        archive = zipped(box / "a.zip", ("liar", content))
        true, lie = (number.to_bytes(4, "little") for number in (len(content), said))
        data = archive.read_bytes()
        assert data.count(true) == 2  # its own header and the directory's
        archive.write_bytes(data.replace(true, lie))
        refuse(archive, max_bytes=100_000)


@pytest.mark.fault("S3")
def test_a_zip_that_would_be_decompressed_at_once(box: Path) -> None:
    """bzip2 turns a few bytes into any number in one call, so it is not begun with."""
    with zipfile.ZipFile(box / "a.zip", "w", zipfile.ZIP_BZIP2) as file:
        file.writestr("evil", bytes(1000))
    refuse(box / "a.zip", "evil")


@pytest.mark.fault("S3")
def test_headers_that_grow_without_end(box: Path) -> None:
    """A name or a comment of 100 MB of zeros is small in gzip, and tarfile would hold it all."""
    for member in (
        info("././@LongLink", type=tarfile.GNUTYPE_LONGNAME),
        info("pax", type=tarfile.XHDTYPE),
    ):
        refuse(tar(box / "a.tar.gz", (member, bytes(100_000_000))), "bytes of headers")
    sparse = info("evil", type=tarfile.GNUTYPE_SPARSE)
    refuse(tar(box / "b.tar.gz", (sparse, b"x" * 512)), "evil")


@pytest.mark.fault("S3")
def test_what_follows_the_end_is_not_read_for_ever(box: Path) -> None:
    whole = gzip.decompress(tar(box / "a.tar.gz", (info("good"), b"good")).read_bytes())
    (box / "a.tar.gz").write_bytes(gzip.compress(whole + bytes(50_000_000), 1))
    refuse(box / "a.tar.gz", "after its end")


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_an_archive_cut_off_anywhere(box: Path, suffix: str) -> None:
    """At 40 places, the ends of blocks and headers among them: never taken for a whole one."""
    contents = [(f"file{number}", os.urandom(700 * number)) for number in range(1, 5)]
    archive = box / f"a{suffix}"
    if suffix == ".zip":
        zipped(archive, *contents)
    else:
        tar(archive, *((info(name), data) for name, data in contents))
    data = archive.read_bytes()
    # A tar ends in at least two blocks of zeros; the first of them says that it is whole.
    end = len(data.rstrip(b"\0")) if suffix == ".tar" else len(data) - 1
    for length in {*range(0, end, max(1, end // 30)), 0, 1, 511, 512, 513, 1024, 2048, end - 1}:
        archive.write_bytes(data[:length])
        refuse(archive)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".zip"])
def test_what_is_no_archive(box: Path, suffix: str) -> None:
    for content in (b"", b"<html>not found</html>" * 100, os.urandom(20_000)):
        (box / f"a{suffix}").write_bytes(content)
        refuse(box / f"a{suffix}")
    (box / f"a{suffix}").unlink()
    refuse(box / f"a{suffix}", "No such file")
    (box / "a.rar").write_bytes(b"Rar!")
    refuse(box / "a.rar", "not a .tar")


def test_a_flipped_bit_is_noticed(box: Path) -> None:
    for suffix, build in ((".tar.gz", gzip_of), (".zip", zip_of)):
        archive = box / f"a{suffix}"
        build(archive, os.urandom(10_000))
        data = bytearray(archive.read_bytes())
        data[len(data) // 2] ^= 1
        archive.write_bytes(data)
        refuse(archive)


def gzip_of(path: Path, content: bytes) -> None:
    tar(path, (info("file"), content))


def zip_of(path: Path, content: bytes) -> None:
    zipped(path, ("file", content))


def test_an_encrypted_zip(box: Path) -> None:
    archive = zipped(box / "a.zip", ("secret", b"content"))
    data = bytearray(archive.read_bytes())
    for signature, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # bit 0 of the flags
        data[data.index(signature) + offset] |= 1
    archive.write_bytes(data)
    refuse(archive, "secret")


def test_the_folder_that_another_process_made_stays(box: Path) -> None:
    archive = tar(box / "a.tar", (info("file"), b"ours"))
    (box / "out").mkdir()
    (box / "out/file").write_text("theirs")
    extract(archive, box / "out")
    assert below(box) == {"out/file": b"theirs", "a.tar": archive.read_bytes()}


def test_two_processes_unpack_one_archive(box: Path) -> None:
    archive = tar(box / "a.tar.gz", *((info(name), data) for name, data in FILES.items()))
    code = "import sys\nfrom pathlib import Path\nfrom cvtrain.data.archive import extract\n"
    code += "extract(Path(sys.argv[1]), Path(sys.argv[2]))"
    command = [sys.executable, "-c", code, str(archive), str(box / "out")]
    both = [subprocess.Popen(command) for _ in range(2)]
    assert [process.wait(20) for process in both] == [0, 0]
    assert below(box / "out") == FILES
    assert sorted(path.name for path in box.iterdir()) == ["a.tar.gz", "out"]


def test_a_place_that_cannot_be_written(box: Path) -> None:
    archive = tar(box / "a.tar", (info("file"), b"x"))
    for folder in (archive / "out", archive):  # a file where a directory has to be
        with pytest.raises(MachineError) as error:
            extract(archive, folder)
        assert (error.value.code, error.value.name) == (6, "NOT-WRITABLE")
    assert list(box.iterdir()) == [archive]


def test_a_full_disk_leaves_nothing(box: Path) -> None:
    archive = tar(box / "a.tar.gz", (info("file"), bytes(200_000)))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(MachineError) as error:
            extract(archive, box / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (error.value.code, error.value.name) == (6, "NO-SPACE")
    assert f"{box / 'out'}; " in error.value.line()
    assert list(box.iterdir()) == [archive]


class Stop(Exception):
    pass


@pytest.mark.parametrize("suffix", [".tar.gz", ".zip"])
def test_what_a_signal_raises_goes_through(box: Path, suffix: str) -> None:
    """In mid-file; and nothing is left."""
    archive = box / f"a{suffix}"
    build = zip_of if suffix == ".zip" else gzip_of
    build(archive, bytes(150_000_000))

    def stop(signum: int, frame: object) -> None:
        assert next(box.glob(".out*/content/file")).stat().st_size
        raise Stop

    old = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, 0.1)
    try:
        with pytest.raises(Stop):
            extract(archive, box / "out")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, old)
    assert list(box.iterdir()) == [archive]


@pytest.mark.fault("S3")
@pytest.mark.nightly
def test_ten_gigabytes_of_zeros(box: Path) -> None:
    """Refused at the limit, soon, and without the memory for it."""
    with gzip.open(box / "a.tar.gz", "wb", 1) as file:
        file.write(info("zeros", size=10 * 2**30).tobuf())
    gigabyte = gzip.compress(bytes(2**30), 1)
    with (box / "a.tar.gz").open("ab") as raw:
        for _ in range(10):
            raw.write(gigabyte)  # gzip files in a row are one
        raw.write(gzip.compress(bytes(10240)))
    assert (box / "a.tar.gz").stat().st_size < 60_000_000
    code = (
        "import re, sys\nfrom pathlib import Path\n"
        "from cvtrain.data.archive import extract\nfrom cvtrain.errors import DataError\n"
        "try: extract(Path(sys.argv[1]), Path(sys.argv[2]), max_bytes=2**30)\n"
        "except DataError as error: print(error.line())\n"
        f"print({PEAK})"
    )
    command = [sys.executable, "-c", code, str(box / "a.tar.gz"), str(box / "out")]
    start = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    line, kilobytes = done.stdout.splitlines()
    assert line.startswith("cvtrain: error[ARCHIVE]: 'zeros' is more than the bytes allowed")
    assert int(kilobytes) < 100_000
    assert time.monotonic() - start < 60
    assert [path.name for path in box.iterdir()] == ["a.tar.gz"]
