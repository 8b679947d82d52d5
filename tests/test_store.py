"""Models and detectors found, checked and pulled; a local server stands for the network."""

import errno
import hashlib
import io
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from tests.servers import Server, serving
from vafer import download, pulling, remote, store
from vafer.errors import ModelError, UsageError

# As shipped, before `home` puts others in their place.
PINNED, RELEASE_URL = remote.PACKS, remote.RELEASE_URL

DETECTOR = b"detector" * 1000
OTHER = b"recogniser" * 1000


def zipped(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def pack_of(archive: bytes, *, name: str = "tiny") -> remote.Pack:
    return remote.Pack(
        name=name,
        archive_bytes=len(archive),
        archive_sha256=hashlib.sha256(archive).hexdigest(),
        file_name="det.onnx",
        file_sha256=hashlib.sha256(DETECTOR).hexdigest(),
    )


ARCHIVE = zipped({"det.onnx": DETECTOR, "rec.onnx": OTHER})
PACK = pack_of(ARCHIVE)


Find = Callable[[str | Path | None], Path]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        monkeypatch.setattr(remote, "RELEASE_URL", server.url)
        yield server


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, one small pack, and no way out to the network unless `server` opens one."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(remote, "RELEASE_URL", "http://127.0.0.1:9")
    monkeypatch.setattr(store, "PACKS", {"tiny": PACK})
    monkeypatch.chdir(tmp_path)
    return home


@pytest.fixture
def notices() -> list[str]:
    return []


@pytest.fixture
def find(notices: list[str]) -> Find:
    return lambda wanted: store.find_detector(wanted, on_notice=notices.append)


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() or not any(path.iterdir())]


def put(path: Path, content: bytes = DETECTOR) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def use_packs(monkeypatch: pytest.MonkeyPatch, *packs: remote.Pack) -> None:
    monkeypatch.setattr(store, "PACKS", {pack.name: pack for pack in packs})


@pytest.fixture
def weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "weights"
    for name in ("small", store.DEFAULT_MODEL):
        put(folder / f"{name}.safetensors", name.encode())
    put(folder / "small.md", b"card")
    monkeypatch.setattr(store, "WEIGHTS", folder)
    return folder


def test_embedded_models_are_the_weights_not_their_cards(weights: Path) -> None:
    assert store.embedded_models() == ("small", store.DEFAULT_MODEL)  # sorted


def test_model_by_default_by_name_and_by_path(weights: Path, tmp_path: Path) -> None:
    mine = put(tmp_path / "mine.safetensors")
    bare = put(tmp_path / "bare")
    assert store.find_model(None) == weights / f"{store.DEFAULT_MODEL}.safetensors"
    assert store.find_model("small") == weights / "small.safetensors"
    assert store.find_model(mine) == mine
    assert store.find_model("mine.safetensors").samefile(mine)
    assert store.find_model("bare").samefile(bare)


def test_an_embedded_name_wins_over_a_file_of_that_name(weights: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "small")
    assert store.find_model("small") == weights / "small.safetensors"
    assert store.find_model("./small").samefile(file)
    assert store.find_model(Path("small")).samefile(file)
    file.unlink()
    with pytest.raises(ModelError, match="no file small, which a Path means"):
        store.find_model(Path("small"))


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        ("nobody", "nobody: no such model"),
        ("gone.safetensors", "gone.safetensors: no such file"),
        ("no/where", "no/where: no such file"),
        ("weights", "weights is a folder"),
        ("x" * 5000, "file name too long"),
        ("", "an empty name for a model"),
    ],
)
def test_a_missing_model_says_what_was_looked_for(weights: Path, wanted: str, says: str) -> None:
    with pytest.raises(ModelError, match=re.escape(says)):
        store.find_model(wanted)


def test_a_run_folder_is_its_model(tmp_path: Path) -> None:
    path = put(tmp_path / "run" / "model.safetensors")
    choice = store.choose_model(tmp_path / "run", on_notice=print)
    assert (choice.path, str(choice)) == (path, f"{path} (file)")


def test_a_missing_model_lists_the_embedded_ones(weights: Path) -> None:
    with pytest.raises(ModelError, match=f"small, {store.DEFAULT_MODEL}"):
        store.find_model("nobody")


def test_a_detector_is_no_model() -> None:
    for name in (store.DEFAULT_DETECTOR, *store.PACKS):
        with pytest.raises(ModelError, match=f"^{name} is a detector, not a model; give"):
            store.find_model(name)


@pytest.mark.parametrize(
    ("ending", "says"),
    [
        (".onnx", "a detector, not a model"),
        (".t7", ".*vafer models convert"),
        (".pth", "PyTorch's file"),
    ],
)
def test_a_file_of_another_kind_is_told_by_its_ending(
    ending: str, says: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{ending}"
    path.touch()
    with pytest.raises(ModelError, match=rf"a{re.escape(ending)}: {says}"):
        store.find_model(path)


def test_a_model_file_is_no_detector(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    path.touch()
    with pytest.raises(ModelError, match="a model, not a detector: give it with --model"):
        store.find_detector(path, on_notice=print)


def test_a_model_is_no_detector() -> None:
    for name in (store.DEFAULT_MODEL, *store.PAIRS):
        with pytest.raises(ModelError, match=f"^{name} is a model, not a detector; give"):
            store.find_detector(name, on_notice=print)


def test_no_default_model_in_the_installation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / store.DEFAULT_MODEL)  # a stray file must not stand in for the default
    monkeypatch.setattr(store, "WEIGHTS", tmp_path / "empty")
    with pytest.raises(ModelError, match=f"{store.DEFAULT_MODEL}: no such model.*none in this"):
        store.find_model(None)


def test_sha256_of_more_than_one_piece(tmp_path: Path) -> None:
    content = bytes(range(256)) * 9000
    assert store.sha256(put(tmp_path / "f", content)) == hashlib.sha256(content).hexdigest()


def test_detector_by_path(find: Find, tmp_path: Path) -> None:
    path = put(tmp_path / "own.onnx", b"any")
    assert find(path) == path
    assert find("own.onnx").samefile(path)


@pytest.mark.parametrize("wanted", ["own.onnx", "buffalo_xl", "some/where"])
def test_a_missing_detector_names_the_packs(find: Find, wanted: str) -> None:
    with pytest.raises(ModelError, match=rf"{wanted}: no such .*tiny \(0 MB\)"):
        find(wanted)


def test_none_with_nothing_embedded_offers_the_choices(
    find: Find, server: Server, notices: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "DEFAULT_DETECTOR", "gone")
    large = replace(PACK, name="large", archive_bytes=288_621_354)
    use_packs(monkeypatch, PACK, large)
    with pytest.raises(UsageError) as caught:
        find(None)
    for part in ("ONNX", "YuNet", "Apache-2.0", "tiny", "large (289 MB)", "non-commercial"):
        assert part in str(caught.value)
    assert (server.asked, notices) == ([], [])


@pytest.mark.parametrize(
    "place",
    [".insightface/models/tiny", ".insightface/models/tiny/tiny", ".cache/vafer/tiny"],
)
def test_a_cached_pack_is_used_without_the_network(
    find: Find, server: Server, notices: list[str], home: Path, place: str
) -> None:
    path = put(home / place / "det.onnx")
    assert find("tiny") == path
    assert (server.asked, notices) == ([], [])


def test_none_is_the_embedded_detector_whatever_is_cached(
    find: Find, home: Path, weights: Path
) -> None:
    put(home / ".insightface" / "models" / "tiny" / "det.onnx")
    with pytest.raises(UsageError, match=f"has no {store.DEFAULT_DETECTOR}"):
        find(None)
    embedded = put(weights / f"{store.DEFAULT_DETECTOR}.onnx")
    other = put(weights / "other.onnx")
    assert find(None) == find(store.DEFAULT_DETECTOR) == embedded
    assert find("other") == other
    assert store.embedded_detectors() == ("other", store.DEFAULT_DETECTOR)


def test_a_choice_says_where_it_came_from(weights: Path, home: Path, tmp_path: Path) -> None:
    def ignore(text: str) -> None:
        pass

    put(weights / f"{store.DEFAULT_DETECTOR}.onnx")
    put(home / ".insightface" / "models" / "tiny" / "det.onnx")
    mine = put(tmp_path / "mine.safetensors")
    default = store.choose_model(None, on_notice=ignore)
    detector = store.choose_detector("tiny", on_notice=ignore)
    assert store.describe_choice([default], detector) == (
        f"model {store.DEFAULT_MODEL} (embedded, the default), detector tiny (cached)"
    )
    named = store.choose_model(store.DEFAULT_MODEL, on_notice=ignore)
    assert store.describe_choice([named], None) == f"model {store.DEFAULT_MODEL} (embedded)"
    assert store.describe_choice([named, named], detector) == "2 models, detector tiny (cached)"
    assert str(named) == f"{store.DEFAULT_MODEL} (embedded)"
    assert store.choose_model(mine, on_notice=ignore) == store.Choice("mine", mine, "file")
    assert (
        str(store.choose_detector(None, on_notice=ignore)) == "vafer-faces (embedded, the default)"
    )


def test_a_pack_name_wins_over_a_file_of_that_name(find: Find, home: Path, tmp_path: Path) -> None:
    file = put(tmp_path / "tiny")
    cached = put(home / ".insightface" / "models" / "tiny" / "det.onnx")
    assert find("tiny") == cached
    assert find("./tiny").samefile(file)
    assert find(Path("tiny")).samefile(file)


def test_a_damaged_cached_file_is_refused_and_not_replaced(
    find: Find, server: Server, home: Path
) -> None:
    server.serve("/tiny.zip", ARCHIVE)
    path = put(home / ".cache" / "vafer" / "tiny" / "det.onnx", DETECTOR[:-1] + b"!")
    with pytest.raises(ModelError) as caught:
        find("tiny")
    for part in (str(path), store.sha256(path), PACK.file_sha256, "Delete it"):
        assert part in str(caught.value)
    assert server.asked == []
    assert path.read_bytes().endswith(b"!")


def test_a_cached_file_that_cannot_be_read_is_refused(find: Find, home: Path) -> None:
    (home / ".cache" / "vafer" / "tiny" / "det.onnx").mkdir(parents=True)
    with pytest.raises(ModelError, match=r"det\.onnx: cannot be read: Is a directory"):
        find("tiny")


@pytest.mark.parametrize("content", [DETECTOR[:-1] + b"!", None])
def test_what_insightface_has_of_another_kind_is_passed_over(
    find: Find, server: Server, home: Path, content: bytes | None
) -> None:
    theirs = home / ".insightface" / "models" / "tiny" / "det.onnx"
    if content is None:
        theirs.mkdir(parents=True)
    else:
        put(theirs, content)
    server.serve("/tiny.zip", ARCHIVE)
    own = home / ".cache" / "vafer" / "tiny" / "det.onnx"
    assert find("tiny") == own
    assert find("tiny") == own
    assert server.asked == ["/tiny.zip"]
    assert theirs.is_dir() or theirs.read_bytes() == content


def test_without_a_home_only_a_path_will_do(
    find: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(UsageError, match="set HOME"):
        find("tiny")
    assert find(put(tmp_path / "own.onnx")) == tmp_path / "own.onnx"


def test_xdg_cache_home_moves_what_vafer_pulls(
    find: Find, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    server.serve("/tiny.zip", ARCHIVE)
    assert find("tiny") == tmp_path / "xdg" / "vafer" / "tiny" / "det.onnx"


def test_pull_keeps_the_detector_alone_and_is_done_once(
    find: Find, server: Server, notices: list[str], home: Path
) -> None:
    server.serve("/tiny.zip", ARCHIVE)
    path = find("tiny")
    assert path.read_bytes() == DETECTOR
    assert files_in(home) == [path]
    assert find("tiny") == path
    assert server.asked == ["/tiny.zip"]
    assert len(notices) == 1
    assert "non-commercial research" in notices[0]
    assert f"{server.url}/tiny.zip" in notices[0]


def test_pull_leaves_insightfaces_own_folder_alone(find: Find, server: Server, home: Path) -> None:
    # insightface 2.1 takes any existing models/<pack> for the whole pack: the rest would never come
    server.serve("/tiny.zip", ARCHIVE)
    find("tiny")
    assert not (home / ".insightface").exists()


@pytest.mark.parametrize("member", ["tiny/det.onnx", "../../det.onnx", "/etc/det.onnx"])
def test_where_the_archive_puts_the_detector_does_not_matter(
    find: Find,
    server: Server,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    member: str,
) -> None:
    archive = zipped({member: DETECTOR})
    use_packs(monkeypatch, pack_of(archive))
    server.serve("/tiny.zip", archive)
    path = find("tiny")
    assert path == home / ".cache" / "vafer" / "tiny" / "det.onnx"
    assert files_in(tmp_path) == [path]


def test_pull_follows_redirects(find: Find, server: Server) -> None:
    server.serve("/tiny.zip", status=302, Location="/elsewhere")
    server.serve("/elsewhere", status=301, Location=f"{server.url}/there")
    server.serve("/there", ARCHIVE)
    assert find("tiny").read_bytes() == DETECTOR
    assert server.asked == ["/tiny.zip", "/elsewhere", "/there"]


FLIPPED = ARCHIVE[:100] + bytes([ARCHIVE[100] ^ 1]) + ARCHIVE[101:]


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        ({"body": FLIPPED}, hashlib.sha256(FLIPPED).hexdigest()),
        ({"body": ARCHIVE[:-50]}, f"sent {len(ARCHIVE) - 50} bytes, expected {len(ARCHIVE)}"),
        (
            {"body": ARCHIVE[:-50], "Content_Length": str(len(ARCHIVE))},
            f"{len(ARCHIVE) - 50} bytes",
        ),
        ({"body": ARCHIVE + b"x"}, f"at least {len(ARCHIVE) + 1} bytes, expected {len(ARCHIVE)}"),
        ({"body": b""}, "sent 0 bytes"),
        ({"status": 404}, "HTTP Error 404"),
        ({"status": 503}, "HTTP Error 503"),
        ({"status": 302, "Location": "/tiny.zip"}, "infinite loop"),
        ({"status": 302, "Location": "file:///etc/hostname"}, "file:///etc/hostname"),
        ({"status": 302, "Location": "ftp://127.0.0.1/x"}, "expected http or https"),
        ({"status": 302, "Location": "http://[bad/"}, "Invalid IPv6"),
    ],
)
def test_a_failed_pull_says_what_came_and_leaves_nothing(
    find: Find, server: Server, home: Path, answer: dict, says: str
) -> None:
    server.serve("/tiny.zip", **answer)
    with pytest.raises(ModelError) as caught:
        find("tiny")
    by_hand = (PACK.archive_sha256, str(home / ".cache/vafer/tiny/det.onnx"))
    for part in (f"{server.url}/tiny.zip", says, *by_hand):
        assert part in str(caught.value)
    assert "\n" not in str(caught.value)
    assert files_in(home / ".cache" / "vafer") == []

    server.serve("/tiny.zip", ARCHIVE)  # and it does not stand in the way of a later pull
    assert find("tiny").read_bytes() == DETECTOR


def test_no_server(find: Find, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    with pytest.raises(ModelError, match=r"http://127\.0\.0\.1:9/tiny\.zip: .*refused"):
        find("tiny")
    assert files_in(home / ".cache" / "vafer") == []


def test_a_silent_server_is_given_up(find: Find, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(download, "TIMEOUT_S", 0.05)
    with ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as silent:  # never serves
        monkeypatch.setattr(remote, "RELEASE_URL", f"http://127.0.0.1:{silent.server_port}")
        with pytest.raises(ModelError, match="timed out"):
            find("tiny")


@pytest.mark.parametrize(
    ("members", "says"),
    [
        ({"det.onnx": OTHER}, hashlib.sha256(OTHER).hexdigest()),
        ({"rec.onnx": OTHER}, "holds 0 files named det.onnx"),
        ({"a/det.onnx": DETECTOR, "b/det.onnx": DETECTOR}, "holds 2 files named det.onnx"),
    ],
)
def test_an_archive_without_the_pinned_detector(
    find: Find,
    server: Server,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    members: dict[str, bytes],
    says: str,
) -> None:
    archive = zipped(members)
    use_packs(monkeypatch, pack_of(archive))
    server.serve("/tiny.zip", archive)
    with pytest.raises(ModelError, match=says):
        find("tiny")
    assert files_in(home / ".cache" / "vafer") == []


def test_a_full_disk(
    find: Find, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    server.serve("/tiny.zip", ARCHIVE)
    monkeypatch.setattr(shutil, "copyfileobj", full)
    with pytest.raises(ModelError, match="No space left on device"):
        find("tiny")
    assert files_in(home / ".cache" / "vafer") == []


def test_a_cache_folder_that_cannot_be_made(find: Find, server: Server, home: Path) -> None:
    put(home / ".cache")
    with pytest.raises(ModelError, match=r"\.cache/vafer: nothing can be kept there: .*XDG_C"):
        find("tiny")
    assert server.asked == []


def test_an_interrupted_pull_leaves_nothing(
    find: Find, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    server.serve("/tiny.zip", ARCHIVE)
    monkeypatch.setattr(shutil, "copyfileobj", interrupt)
    with pytest.raises(KeyboardInterrupt):
        find("tiny")
    assert files_in(home / ".cache" / "vafer") == []


def test_pulls_at_the_same_time_do_not_meet(
    find: Find, server: Server, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    together = threading.Barrier(4, timeout=10)
    unpack = pulling._unpack

    def unpack_together(*args: object) -> object:
        together.wait()  # all four have their archive and none its detector
        return unpack(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(pulling, "_unpack", unpack_together)
    server.serve("/tiny.zip", ARCHIVE)
    with ThreadPoolExecutor(4) as pool:
        paths = set(pool.map(find, ["tiny"] * 4))
    assert len(server.asked) == 4
    assert files_in(home) == [paths.pop()]
    assert not paths
    assert find("tiny").read_bytes() == DETECTOR


def test_the_pinned_table_is_well_formed() -> None:
    assert RELEASE_URL.startswith("https://github.com/deepinsight/insightface/releases/")
    assert list(PINNED) == ["buffalo_l", "buffalo_m", "buffalo_s", "buffalo_sc", "antelopev2"]
    for name, pack in PINNED.items():
        assert pack.name == name
        assert pack.files[0].url.endswith(f"/{name}.zip")
        assert pack.archive_bytes > 10e6
        assert Path(pack.file_name).name == pack.file_name
        assert pack.file_name.endswith(".onnx")
        assert re.fullmatch("[0-9a-f]{64}", pack.archive_sha256)
        assert re.fullmatch("[0-9a-f]{64}", pack.file_sha256)
    assert len({pack.archive_sha256 for pack in PINNED.values()}) == len(PINNED)


@pytest.mark.parametrize(
    ("file", "packs"),
    [("scrfd_500m.onnx", ("buffalo_s", "buffalo_sc")), ("scrfd_2.5g.onnx", ("buffalo_m",))],
)
def test_pinned_detectors_are_the_real_ones(
    shared: Path,
    find: Find,
    home: Path,
    monkeypatch: pytest.MonkeyPatch,
    file: str,
    packs: tuple,
) -> None:
    monkeypatch.setattr(store, "PACKS", PINNED)
    for name in packs:
        cached = home / ".insightface" / "models" / name / PINNED[name].file_name
        cached.parent.mkdir(parents=True)
        shutil.copyfile(shared / "models" / file, cached)
        assert find(name) == cached
