import json
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest

import banding_removal.data.index
from banding_removal.data.index import index_folder, read_volumes
from banding_removal.data.ismrmrd import ScanHeader, parse_header
from banding_removal.data.volume import VolumeError, read_volume
from tests.support.fastmri_files import HEADER, make_kspace, write_volume

XML = HEADER.format(
    scanner=" Aera ",
    field_strength=1.494,
    height=640,
    width=368,
    recon_height=320,
    recon_width=300,
    center=183,
    maximum=365,
)


def index(folder: Path, *, skip_bad: bool = False) -> list[banding_removal.data.index.Volume]:
    return index_folder(folder / "volumes", cache_folder=folder / "cache", skip_bad=skip_bad)


def write(folder: Path, *names: str) -> list[Path]:
    return [write_volume(folder / "volumes" / name, seed=i) for i, name in enumerate(names)]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that the index opens."""
    names: list[str] = []

    def recording(paths: list[Path]) -> Iterator[banding_removal.data.index.Volume | VolumeError]:
        names.extend(path.name for path in paths)
        return read_volumes(paths)

    monkeypatch.setattr(banding_removal.data.index, "read_volumes", recording)
    return names


# Header


@pytest.mark.parametrize(
    "xml",
    [
        XML,
        XML.replace(' xmlns="http://www.ismrm.org/ISMRMRD"', ""),
        re.sub(r"<(/?)(?=\w)", r"<\1m:", XML).replace("xmlns=", "xmlns:m="),
    ],
    ids=["default namespace", "no namespace", "prefixed namespace"],
)
def test_header_is_read_with_and_without_namespace(xml: str) -> None:
    header = parse_header(xml.encode())
    assert header.scanner == "Aera"
    assert header.field_strength == 1.494
    assert header.acquired == (1, 367)  # 368 // 2 - 183, and 1 + 365 + 1
    assert header.recon_size == (320, 300)


@pytest.mark.parametrize("tag", ["center", "maximum", "y", "matrixSize", "encodingLimits"])
def test_header_without_a_part_of_the_limits_gives_no_acquired_columns(tag: str) -> None:
    header = parse_header(re.sub(f"<{tag}>.*?</{tag}>", "", XML, flags=re.DOTALL).encode())
    assert header.acquired is None
    assert (header.scanner, header.field_strength) == ("Aera", 1.494)


def test_header_without_scanner_or_field_strength_says_so() -> None:
    tag = "acquisitionSystemInformation"
    header = parse_header(re.sub(f"<{tag}>.*?</{tag}>", "", XML, flags=re.DOTALL).encode())
    assert (header.scanner, header.field_strength) == ("unknown", None)
    assert header.acquired == (1, 367)
    empty = parse_header(b"<ismrmrdHeader/>")
    assert (empty.scanner, empty.field_strength, empty.acquired) == ("unknown", None, None)


@pytest.mark.parametrize("xml", [b"", b"<a><b></a>", b"\x00\x01", XML.encode()[:30]])
def test_malformed_header_gives_nothing_and_says_so(xml: bytes) -> None:
    header = parse_header(xml)
    assert "not well-formed" in header.problems[0]
    assert replace(header, problems=()) == ScanHeader()


def test_what_stands_before_a_mistake_in_the_header_is_read() -> None:
    header = parse_header(XML.replace("<reconSpace>", "<reconSpace").encode())
    assert (header.scanner, header.field_strength) == ("Aera", 1.494)
    assert (header.encoded_size, header.recon_size) == ((640, 368), None)
    assert len(header.problems) == 1


@pytest.mark.parametrize(
    "value", ["wide", "nan", "inf", "1e999", "1e300", "1,5", "NP.FLOAT32(1.5)"]
)
def test_header_number_that_is_none_counts_as_not_given_and_is_named(value: str) -> None:
    header = parse_header(XML.replace("<y>368</y>", f"<y>{value}</y>").encode())
    assert (header.acquired, header.encoded_size) == (None, None)
    assert (header.field_strength, header.recon_size) == (1.494, (320, 300))
    assert header.problems == (f"encoding/encodedSpace/matrixSize/y is {value!r}, not a number",)


@pytest.mark.parametrize("value", ["", " \n "])
def test_empty_element_counts_as_missing(value: str) -> None:
    header = parse_header(XML.replace("1.494", value).encode())
    assert (header.field_strength, header.problems) == (None, ())


def test_header_with_prefixes_that_are_not_declared_is_read() -> None:
    xml = re.sub(r"<(/?)(?=\w)", r"<\1m:", XML.replace(' xmlns="http://www.ismrm.org/ISMRMRD"', ""))
    assert parse_header(xml.encode()) == parse_header(XML.encode())


def encoding(height: str, width: str) -> str:
    (found,) = re.findall("<encoding>.*</encoding>", XML, flags=re.DOTALL)
    return str(found).replace("640", height).replace("368", width)


@pytest.mark.parametrize("other", [encoding("64", "32"), encoding("none", "1e400"), "<encoding/>"])
def test_of_several_encodings_the_one_of_kspace_is_used(other: str) -> None:
    own = encoding("640", "368")
    expected = parse_header(XML.encode())
    for both in (own + other, other + own):
        header = parse_header(XML.replace(own, both).encode(), (640, 368))
        assert header == expected
    first = parse_header(XML.replace(own, encoding("64", "32") + own).encode())
    assert first.encoded_size == (64, 32)


@pytest.mark.parametrize(
    ("model", "scanner"),
    [
        ("A & B", "A & B"),
        ("A &amp; B &#38; C", "A & B & C"),
        ("Univ&uuml;", "Univ&uuml;"),
        ("A\x01B", "A B"),
    ],
)
def test_what_xml_does_not_allow_in_a_text_costs_nothing_else(model: str, scanner: str) -> None:
    xml = XML.replace(" Aera ", model).encode()
    assert parse_header(xml) == replace(parse_header(XML.encode()), scanner=scanner)


@pytest.mark.parametrize("model", ["A" * 101, "A\u202eB"])
def test_a_scanner_that_cannot_be_shown_counts_as_unknown(model: str) -> None:
    header = parse_header(XML.replace(" Aera ", model).encode())
    assert header.scanner == "unknown"
    assert header.problems[0].startswith("acquisitionSystemInformation/systemModel is 'A")


@pytest.mark.parametrize("xml", [b"<html><body/></html>", b"<ismrmrdHeader/>"])
def test_xml_that_is_no_header_is_named(xml: bytes) -> None:
    assert parse_header(xml).problems == (
        "it has neither acquisitionSystemInformation nor encoding",
    )


def test_sizes_that_are_not_whole_are_rounded() -> None:
    xml = XML.replace("<y>300</y>", "<y>299.9996</y>").replace("<y>368</y>", "<y>367.9996</y>")
    header = parse_header(xml.encode())
    assert (header.recon_size, header.encoded_size, header.acquired) == (
        *((320, 300), (640, 368)),
        (1, 367),
    )


@pytest.mark.parametrize(
    "xml",
    [
        ("\n\n " + XML).encode(),
        XML.replace("UTF-8", "UTF-16").encode(),
        XML.replace("UTF-8", "klingon").encode(),
        XML.encode("utf-16"),
        XML.encode("utf-16-le"),
        b"\xef\xbb\xbf" + XML.encode(),
        XML.encode() + bytes(20),
        XML.replace("none", "Universit\u00e4t").encode("latin-1"),
        XML.replace("none", "\u201cnone\u201d").encode("cp1252"),
    ],
    ids=[
        *("newline", "says UTF-16", "unknown", "UTF-16", "no BOM", "BOM", "zeros", "Latin-1"),
        "Windows-1252",
    ],
)
def test_header_is_read_whatever_its_declaration_says(xml: bytes) -> None:
    assert parse_header(xml) == parse_header(XML.encode())
    assert parse_header(xml).scanner == "Aera"


@pytest.mark.parametrize("encoding", ["UTF-8", "UTF-16"])
def test_header_with_a_document_type_is_refused(encoding: str) -> None:
    xml = (
        f'<?xml version="1.0" encoding="{encoding}"?><!DOCTYPE a [<!ENTITY b "Aera">]>'
        "<a><acquisitionSystemInformation><systemModel>&b;</systemModel>"
        "</acquisitionSystemInformation></a>"
    )
    with pytest.raises(ValueError, match="document type"):
        parse_header(xml.encode(encoding))


# Fields


def test_fields_of_a_multicoil_volume(tmp_path: Path) -> None:
    path = write_volume(
        tmp_path / "file1.h5",
        slices=4,
        coils=3,
        size=(32, 28),
        target_size=(24, 20),
        acquired=(2, 25),
        scanner="Skyra",
        field_strength=2.893,
    )
    volume = read_volume(path)
    with h5py.File(path) as file:
        assert volume.data_range == pytest.approx(float(file["reconstruction_rss"][()].max()))
    assert (volume.path, volume.name) == (str(path), "file1.h5")
    assert (volume.bytes, volume.mtime_ns) == (path.stat().st_size, path.stat().st_mtime_ns)
    assert (volume.slices, volume.coils, volume.height, volume.width) == (4, 3, 32, 28)
    assert (volume.target_key, volume.target_size) == ("reconstruction_rss", (24, 20))
    assert (volume.acquisition, volume.scanner) == ("CORPD_FBK", "Skyra")
    assert volume.group == "Skyra_CORPD_FBK"
    assert volume.field_strength == 2.893
    assert volume.acquired == (2, 25)
    assert volume.measured is None
    assert volume.acceleration is None


def test_fields_of_a_single_coil_volume(tmp_path: Path) -> None:
    volume = read_volume(write_volume(tmp_path / "a.h5", coils=None, target_size=(24, 20)))
    assert (volume.slices, volume.coils, volume.height, volume.width) == (4, None, 32, 28)
    assert (volume.target_key, volume.target_size) == ("reconstruction_esc", (24, 20))
    rss_only = write_volume(tmp_path / "b.h5", coils=None, drop=("reconstruction_esc",))
    assert read_volume(rss_only).target_key == "reconstruction_rss"


def test_multicoil_volume_does_not_take_the_single_coil_target(tmp_path: Path) -> None:
    path = write_volume(tmp_path / "a.h5", with_target=False)
    with h5py.File(path, "r+") as file:
        file["reconstruction_esc"] = np.ones((4, 24, 24), np.float32)
    assert read_volume(path).target_key is None


@pytest.mark.parametrize(
    ("acquisition", "expected"),
    [("AXT1PRE", "AXT1"), (np.bytes_(b"AXT1PRE"), "AXT1"), ("AXT1POST", "AXT1POST")],
)
def test_brain_acquisition_before_contrast_counts_as_axt1(
    tmp_path: Path, acquisition: str, expected: str
) -> None:
    volume = read_volume(write_volume(tmp_path / "brain.h5", acquisition=acquisition))
    assert volume.acquisition == expected


def test_fields_of_a_test_file_with_mask_and_without_target(tmp_path: Path) -> None:
    columns = np.zeros(28, dtype=bool)
    columns[2::4] = True  # 7 of 28
    volume = read_volume(write_volume(tmp_path / "t.h5", mask=columns, with_target=False))
    assert volume.measured == "0010" * 7
    assert volume.acceleration == 4
    assert (volume.target_key, volume.target_size, volume.data_range) == (None, None, None)


def test_missing_attributes_have_stand_ins(tmp_path: Path) -> None:
    volume = read_volume(write_volume(tmp_path / "a.h5", drop=("max", "acquisition", "patient_id")))
    with h5py.File(tmp_path / "a.h5") as file:
        assert volume.data_range == pytest.approx(float(file["reconstruction_rss"][()].max()))
    assert volume.acquisition == "unknown"


# Cache


def test_index_is_sorted_by_name_and_holds_only_h5_files(tmp_path: Path) -> None:
    write(tmp_path, "b.h5", "a.h5", "c.h5")
    (tmp_path / "volumes" / "notes.txt").write_text("not a volume")
    assert [volume.name for volume in index(tmp_path)] == ["a.h5", "b.h5", "c.h5"]


def test_second_call_opens_no_file_and_gives_the_same(tmp_path: Path, opened: list[str]) -> None:
    write(tmp_path, "a.h5", "b.h5")
    mask = np.arange(28) % 4 == 0
    write_volume(tmp_path / "volumes" / "c.h5", mask=mask, with_target=False)
    first = index(tmp_path)
    assert opened == ["a.h5", "b.h5", "c.h5"]
    assert first == [read_volume(tmp_path / "volumes" / f"{name}.h5") for name in "abc"]
    assert index(tmp_path) == first
    assert opened == ["a.h5", "b.h5", "c.h5"]


def test_only_a_changed_or_new_file_is_read_again(tmp_path: Path, opened: list[str]) -> None:
    _, b, c = write(tmp_path, "a.h5", "b.h5", "c.h5")
    before = index(tmp_path)
    opened.clear()

    size, times = b.stat().st_size, (b.stat().st_atime_ns, b.stat().st_mtime_ns)
    write_volume(b, slices=5)  # another size, the same time
    os.utime(b, ns=times)
    assert b.stat().st_size != size
    after = index(tmp_path)
    assert opened == ["b.h5"]
    assert [volume.slices for volume in after] == [4, 5, 4]
    assert [after[0], after[2]] == [before[0], before[2]]

    opened.clear()
    os.utime(c, ns=(times[0], times[1] + 1000))  # the same size, another time
    index(tmp_path)
    assert opened == ["c.h5"]

    opened.clear()
    write(tmp_path, "d.h5")
    assert len(index(tmp_path)) == 4
    assert opened == ["d.h5"]
    index(tmp_path)
    assert opened == ["d.h5"]


def test_removed_file_leaves_the_index_and_the_cache(tmp_path: Path, opened: list[str]) -> None:
    a, _ = write(tmp_path, "a.h5", "b.h5")
    index(tmp_path)
    a.rename(tmp_path / "elsewhere")
    assert [volume.name for volume in index(tmp_path)] == ["b.h5"]
    (tmp_path / "elsewhere").rename(a)
    opened.clear()
    assert len(index(tmp_path)) == 2
    assert opened == ["a.h5"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b'{"version": 7, "volu',
        b"\xff\xfe\x00",
        b"null",
        b"[]",
        b'{"version": 7}',
        b'{"version": 7, "volumes": [{"path": "a.h5"}]}',
        b'{"version": 7, "volumes": [{"speed": 3}]}',
        b'{"version": 7, "volumes": [null]}',
    ],
)
def test_damaged_cache_is_rebuilt_with_a_warning(
    tmp_path: Path, opened: list[str], caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    write(tmp_path, "a.h5", "b.h5")
    before = index(tmp_path)
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_bytes(content)
    opened.clear()
    assert index(tmp_path) == before
    assert opened == ["a.h5", "b.h5"]
    assert "damaged" in caplog.text
    assert str(cache) in caplog.text
    assert index(tmp_path) == before
    assert opened == ["a.h5", "b.h5"]


def test_cache_of_another_version_is_rebuilt_without_a_warning(
    tmp_path: Path, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    write(tmp_path, "a.h5")
    before = index(tmp_path)
    (cache,) = (tmp_path / "cache").iterdir()
    cache.write_text(json.dumps({**json.loads(cache.read_text()), "version": 0}))
    opened.clear()
    assert index(tmp_path) == before
    assert opened == ["a.h5"]
    assert not caplog.text


def test_folders_share_a_cache_folder_without_mixing(tmp_path: Path, opened: list[str]) -> None:
    for part in ("train", "val"):
        write_volume(tmp_path / part / "a.h5", slices=3 if part == "train" else 5)
    for _ in range(2):
        for part, slices in (("train", 3), ("val", 5)):
            (volume,) = index_folder(tmp_path / part, cache_folder=tmp_path / "cache")
            assert volume.slices == slices
    assert len(opened) == 2
    names = sorted(path.suffix for path in (tmp_path / "cache").iterdir())
    assert names == [".json", ".json"]  # and nothing temporary


def test_symbolic_link_keeps_its_own_name(tmp_path: Path) -> None:
    # Masks are seeded by the name; content-addressed stores link names to hashes.
    write_volume(tmp_path / "store" / "0a1b2c.h5")
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "file1.h5").symlink_to(tmp_path / "store" / "0a1b2c.h5")
    assert [volume.name for volume in index(tmp_path)] == ["file1.h5"]


# Faults


def append(path: Path, change: Callable[[h5py.File], None]) -> None:
    with h5py.File(path, "r+") as file:
        change(file)


def write_bad_files(folder: Path) -> dict[str, str]:
    """One file of each fault; name -> a part of what the error must say."""
    expected = {}

    def at(name: str, says: str) -> Path:
        expected[name] = says
        return folder / name

    folder.mkdir(parents=True)
    at("empty.h5", "").write_bytes(b"")
    at("text.h5", "signature not found").write_text("this is no HDF5 file")
    at("folder.h5", "").mkdir()

    truncated = write_volume(at("truncated.h5", "truncated"))
    truncated.write_bytes(truncated.read_bytes()[:-5000])

    write_volume(at("no_kspace.h5", "no dataset 'kspace'"), drop=("kspace",))
    nothing = at("nothing.h5", "holds: nothing")
    h5py.File(nothing, "w").close()
    grouped = write_volume(at("group.h5", "no dataset 'kspace'"), drop=("kspace",))
    append(grouped, lambda file: file.create_group("kspace"))

    kspace = make_kspace(4, 3, 32, 28, (2, 25))
    bad_kspaces = [
        ("rank_2.h5", r"shape (4, 3)", kspace[:, :, 0, 0]),
        ("rank_5.h5", r"shape (4, 3, 32, 28, 1)", kspace[..., None]),
        ("real.h5", "dtype float32", kspace.real),
        ("no_slice.h5", "empty", kspace[:0]),
    ]
    for name, says, array in bad_kspaces:
        write_volume(at(name, says), kspace=array, with_target=False)

    write_volume(at("bomb.h5", "document type"), header="<!DOCTYPE a><ismrmrdHeader/>")

    bad_targets = [
        ("target_slices.h5", "(3, 24, 24)", np.ones((3, 24, 24), np.float32)),
        ("target_rank.h5", "(4, 24)", np.ones((4, 24), np.float32)),
        ("target_complex.h5", "complex64", np.ones((4, 24, 24), np.complex64)),
    ]
    for name, says, target in bad_targets:
        path = write_volume(at(name, says), with_target=False)
        append(path, lambda file, t=target: file.create_dataset("reconstruction_rss", data=t))  # type: ignore[misc]
    zeros = write_volume(
        at("target_zero.h5", "largest value of reconstruction_rss is 0, the attribute max is 0.5"),
        with_target=False,
        attrs={"max": 0.5},
    )
    append(zeros, lambda file: file.create_dataset("reconstruction_rss", data=np.zeros((4, 9, 9))))

    left_out = write_volume(at("mask.h5", "mask has shape (27,)"), mask=np.ones(27, bool))
    columns = np.arange(28) % 2 == 0
    append(left_out, lambda file: file["kspace"].write_direct(kspace * columns))
    return expected


def test_all_bad_files_are_named_with_the_reason_in_one_error(tmp_path: Path) -> None:
    expected = write_bad_files(tmp_path / "volumes")
    write(tmp_path, "good.h5")
    for _ in range(2):  # the second time from the cache
        with pytest.raises(VolumeError, match=f"^{len(expected)} unusable") as caught:
            index(tmp_path)
        lines = str(caught.value).splitlines()[1:]
        said = {Path(line.split(": ")[0]).name: line for line in lines}
        assert sorted(said) == sorted(expected)
        assert {n: line for n, line in said.items() if expected[n] not in line} == {}


def test_skip_bad_leaves_bad_files_out_with_a_warning(
    tmp_path: Path, opened: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    expected = write_bad_files(tmp_path / "volumes")
    write(tmp_path, "good1.h5", "good2.h5")
    for _ in range(2):
        caplog.clear()
        volumes = index(tmp_path, skip_bad=True)
        assert [volume.name for volume in volumes] == ["good1.h5", "good2.h5"]
        assert caplog.records[0].levelname == "WARNING"
        assert [name for name in expected if f"{name}: " not in caplog.text] == []
    assert opened.count("good1.h5") == 1


def test_skip_bad_still_raises_where_nothing_is_left(tmp_path: Path) -> None:
    expected = write_bad_files(tmp_path / "volumes")
    with pytest.raises(VolumeError, match=f"^{len(expected)} unusable"):
        index(tmp_path, skip_bad=True)


def test_file_that_turns_bad_is_not_taken_from_the_cache(tmp_path: Path) -> None:
    a, _ = write(tmp_path, "a.h5", "b.h5")
    index(tmp_path)
    a.write_bytes(a.read_bytes()[:-5000])
    with pytest.raises(VolumeError, match=re.escape(str(a))):
        index(tmp_path)
    assert [volume.name for volume in index(tmp_path, skip_bad=True)] == ["b.h5"]


def test_link_to_nowhere_is_a_bad_file_like_others(tmp_path: Path) -> None:
    write(tmp_path, "good.h5")
    (tmp_path / "volumes" / "lost.h5").symlink_to(tmp_path / "nowhere.h5")
    with pytest.raises(VolumeError, match=r"lost\.h5"):
        index(tmp_path)
    assert [volume.name for volume in index(tmp_path, skip_bad=True)] == ["good.h5"]


def test_missing_folder_a_file_in_its_place_and_an_empty_folder_are_told_apart(
    tmp_path: Path,
) -> None:
    folder = re.escape(str(tmp_path / "volumes"))
    with pytest.raises(FileNotFoundError, match=f"{folder} is not a folder"):
        index(tmp_path)
    (tmp_path / "volumes").touch()
    with pytest.raises(FileNotFoundError, match=f"{folder} is not a folder"):
        index(tmp_path)
    (tmp_path / "volumes").unlink()
    (tmp_path / "volumes").mkdir()
    (tmp_path / "volumes" / "notes.txt").touch()
    with pytest.raises(FileNotFoundError, match=rf"{folder} holds no \*\.h5 file"):
        index(tmp_path)


def test_header_columns_outside_the_matrix_count_as_unknown(tmp_path: Path) -> None:
    outside = XML.replace("368", "28").replace("183", "12").replace("365", "27")
    volume = read_volume(write_volume(tmp_path / "outside.h5", header=outside))
    assert volume.acquired is None
