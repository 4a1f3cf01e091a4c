"""Fetching over http from a server that breaks off, fails, cannot resume, or serves something else."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from loopback import Site, serving

from tsvlib.checkpoint import open_checkpoint, open_location
from tsvlib.downloads import Downloads
from tsvlib.errors import CheckpointError, UnreachableError
from tsvlib.sources import locate
from tsvlib.store import Store

pytestmark = pytest.mark.services
TENSORS = {"visual.proj": torch.arange(6.0).reshape(2, 3), "visual.big": torch.arange(300_000.0)}
WEIGHTS = safetensors.torch.save(TENSORS)
DIGEST = hashlib.sha256(WEIGHTS).hexdigest()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving(Site({"/w.safetensors": WEIGHTS})) as site:
        yield site


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("TSV_STORE", str(tmp_path / "store"))
    monkeypatch.setattr("tsvlib.downloads._SECONDS_BEFORE_RETRY", (0.01, 0.01, 0.01))
    return Store(tmp_path / "store")


def assert_is_the_model(uri: str) -> None:
    opened = open_checkpoint(uri)
    assert opened.source == uri
    assert all(torch.equal(opened[name], tensor) for name, tensor in TENSORS.items())


def blobs(store: Store) -> list[Path]:
    return [path for path in (store.root / "blobs").rglob("*") if path.is_file()]


@pytest.mark.parametrize("pin", ["", f"#sha256={DIGEST}"], ids=["by address", "by digest"])
def test_a_file_is_fetched_once_and_kept_read_only(site: Site, store: Store, pin: str) -> None:
    assert_is_the_model(f"{site.url}/w.safetensors{pin}")
    sent = site.bytes_sent
    assert_is_the_model(f"{site.url}/w.safetensors{pin}")
    assert site.bytes_sent == sent
    (blob,) = blobs(store)
    assert blob.name == DIGEST
    assert blob.stat().st_mode & 0o777 == 0o444
    assert not list((store.root / "partial").iterdir())


def test_two_addresses_of_one_content_share_it(site: Site, store: Store) -> None:
    site.files["/copy.safetensors"] = WEIGHTS
    assert_is_the_model(f"{site.url}/w.safetensors")
    assert_is_the_model(f"{site.url}/copy.safetensors")
    assert len(blobs(store)) == 1


def test_changed_content_is_fetched_anew(site: Site, store: Store) -> None:
    assert_is_the_model(f"{site.url}/w.safetensors")
    site.files["/w.safetensors"] = safetensors.torch.save({"x": torch.ones(2)})
    assert set(open_checkpoint(f"{site.url}/w.safetensors")) == {"x"}
    assert len(blobs(store)) == 2


def test_a_broken_connection_goes_on_where_it_stopped(site: Site) -> None:
    site.cut_after["/w.safetensors"] = [700_000, 200_000]
    assert_is_the_model(f"{site.url}/w.safetensors")
    assert not site.cut_after["/w.safetensors"]


def test_an_interrupted_fetch_resumes_in_another_process(site: Site, store: Store) -> None:
    """As after a kill: what has come stays in the partial file, and only the rest is asked for."""

    class Killed(BaseException):
        pass

    def kill_midway(_: str, done: int, total: int) -> None:
        assert total == len(WEIGHTS)
        raise Killed

    file = locate(f"{site.url}/w.safetensors").file("w.safetensors")
    import tsvlib.downloads

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tsvlib.downloads, "_PIECE", 2**19)
        with pytest.raises(Killed):
            Downloads(store).fetch(file, kill_midway)
    (partial,) = (store.root / "partial").iterdir()
    present = partial.stat().st_size
    assert present == 2**19
    assert not (store.root / "blobs").exists()
    before = site.bytes_sent
    assert Downloads(store).fetch(file).path.read_bytes() == WEIGHTS
    assert site.bytes_sent - before == len(WEIGHTS) - present


def test_a_server_without_ranges_or_lengths(site: Site) -> None:
    site.ranges = site.length = False
    assert_is_the_model(f"{site.url}/w.safetensors")


def test_a_server_without_ranges_that_breaks_off(site: Site) -> None:
    site.ranges = False
    site.cut_after["/w.safetensors"] = [700_000]
    assert_is_the_model(f"{site.url}/w.safetensors")


def test_passing_errors_are_tried_again(site: Site) -> None:
    site.fail_with["/w.safetensors"] = [503, 429]
    assert_is_the_model(f"{site.url}/w.safetensors")
    assert not site.fail_with["/w.safetensors"]


def test_lasting_errors_are_not(site: Site) -> None:
    site.fail_with["/w.safetensors"] = [403] * 9
    with pytest.raises(CheckpointError, match=r"w\.safetensors: access is denied"):
        open_checkpoint(f"{site.url}/w.safetensors")
    assert len(site.fail_with["/w.safetensors"]) == 8


def test_it_gives_up_in_the_end(site: Site) -> None:
    site.fail_with["/w.safetensors"] = [500] * 99
    with pytest.raises(CheckpointError, match=r"w\.safetensors: cannot be read: .*500"):
        open_checkpoint(f"{site.url}/w.safetensors")
    assert len(site.fail_with["/w.safetensors"]) == 95


def test_a_wrong_digest_is_told_and_not_kept(site: Site, store: Store) -> None:
    site.files["/w.safetensors"] = WEIGHTS[:-1] + b"!"
    found = hashlib.sha256(site.files["/w.safetensors"]).hexdigest()
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{site.url}/w.safetensors#sha256={DIGEST}")
    assert str(caught.value) == (
        f"{site.url}/w.safetensors: its content has the SHA-256 {found}, not {DIGEST}. It was changed or damaged on "
        "the way; fetch it again, and if that does not help ask its owner."
    )
    assert not (store.root / "blobs").exists()
    assert not list((store.root / "partial").iterdir())


def test_a_login_page(site: Site) -> None:
    site.files["/w.safetensors"] = b"<!DOCTYPE html><title>Sign in</title>"
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{site.url}/w.safetensors")
    assert str(caught.value) == (
        f"{site.url}/w.safetensors: a web page, not weights; perhaps a login or an error page. Check the address and "
        "your access to it."
    )


def test_no_such_file(site: Site) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{site.url}/no.safetensors")
    assert str(caught.value) == f"{site.url}/no.safetensors: there is no such file. Check the address."


def test_no_server(site: Site) -> None:
    started = time.monotonic()
    with pytest.raises(UnreachableError, match=r"127\.0\.0\.1:1/w\.pt: does not answer \(ClientConnectorError\)"):
        open_checkpoint("http://127.0.0.1:1/w.pt")
    assert time.monotonic() - started < 2


def test_offline_says_so_at_once(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TSV_OFFLINE", "1")
    with pytest.raises(UnreachableError) as caught:
        open_checkpoint(f"{site.url}/w.safetensors")
    assert str(caught.value) == (
        f"{site.url}/w.safetensors: is not in the store, and TSV_OFFLINE says that this machine is offline. Fetch it "
        "where there is a network ('tsv fetch') and share TSV_STORE, or unset the variable."
    )
    assert not site.asked


def test_offline_takes_what_was_fetched(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    open_checkpoint(f"{site.url}/w.safetensors")
    monkeypatch.setenv("TSV_OFFLINE", "1")
    assert_is_the_model(f"{site.url}/w.safetensors")


def test_a_pinned_file_is_not_asked_about_again(site: Site) -> None:
    uri = f"{site.url}/w.safetensors#sha256={DIGEST}"
    open_checkpoint(uri)
    site.asked.clear()
    assert_is_the_model(uri)
    assert not site.asked


def test_plain_http_to_elsewhere_needs_a_digest() -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("http://example.org/w.pt")
    assert str(caught.value) == (
        "http://example.org/w.pt: plain http can be tampered with on the way. Use https, or add #sha256= and the "
        "digest of the file."
    )


@pytest.mark.parametrize("fragment", ["sha256=1234", "md5=0", "weights"])
def test_a_fragment_that_is_no_digest(fragment: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"https://example.org/w.pt#{fragment}")
    assert str(caught.value) == (
        f"https://example.org/w.pt#{fragment}: '#{fragment}' is not understood; write #sha256= and 64 hexadecimal "
        "digits."
    )


def test_a_scheme_nobody_knows() -> None:
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint("gopher://example.org/w.pt")
    assert str(caught.value) == (
        "gopher://example.org/w.pt: no source is known for gopher://. Known are paths, https, hf, open-clip, the "
        "plug-ins' and what fsspec has a package for, such as s3."
    )


def test_the_header_alone_is_read_for_planning(site: Site) -> None:
    opened = open_location(locate(f"{site.url}/w.safetensors"))
    assert opened.specs["visual.big"].shape == (300_000,)
    assert site.bytes_sent < len(WEIGHTS) / 4


def test_a_store_without_room(site: Site, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    store.root.mkdir()
    monkeypatch.setattr("tsvlib.downloads.shutil.disk_usage", lambda _: SimpleNamespace(free=7))
    with pytest.raises(CheckpointError) as caught:
        open_checkpoint(f"{site.url}/w.safetensors")
    assert str(caught.value) == (
        f"{site.url}/w.safetensors: needs {len(WEIGHTS):,} bytes, but the disk of the store {store.root} has 7 free. "
        "Make room, or set TSV_STORE to a folder on another disk."
    )


def test_many_at_once_fetch_it_once(site: Site, store: Store) -> None:
    threads = [threading.Thread(target=assert_is_the_model, args=(f"{site.url}/w.safetensors",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(blobs(store)) == 1
    assert site.bytes_sent < 2 * len(WEIGHTS)


def test_progress_is_told(site: Site) -> None:
    told: list[tuple[str, int, int]] = []
    open_checkpoint(f"{site.url}/w.safetensors", lambda *what: told.append(what))
    assert told[-1] == (f"{site.url}/w.safetensors", len(WEIGHTS), len(WEIGHTS))


def test_shards_come_along(site: Site, store: Store) -> None:
    import json

    for number, name in enumerate(TENSORS):
        site.files[f"/m/{number}.safetensors"] = safetensors.torch.save({name: TENSORS[name]})
    weight_map = {name: f"{number}.safetensors" for number, name in enumerate(TENSORS)}
    site.files["/m/model.safetensors.index.json"] = json.dumps({"weight_map": weight_map}).encode()
    assert_is_the_model(f"{site.url}/m/model.safetensors.index.json")
    assert len(blobs(store)) == 3
