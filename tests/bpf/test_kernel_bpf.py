# SPDX-License-Identifier: Apache-2.0
"""Objects, maps and programs against the running kernel. Needs root and clang."""

from __future__ import annotations

import errno
import os
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path

import pytest

from softunicast.errors import KernelError
from softunicast.kernel.abi import Claim, Counter, Drop, Flow, Settings, Stats, SweepArgs
from softunicast.kernel.abi_util import prefix_key
from softunicast.kernel.bpf import (
    EXIST,
    NOEXIST,
    BpfObject,
    Map,
    MapType,
    Program,
    ProgramType,
    mount_bpffs,
    object_path,
    possible_cpus,
    run_iter,
)
from softunicast.kernel.stats import sum_percpu
from tests.support.kernel_place import compile_bpf, open_descriptors, pin_folder

SAMPLE = Path(__file__).parent / "kernel_sample.bpf.c"
ZERO = bytes(4)


@pytest.fixture(scope="module")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return compile_bpf(SAMPLE, tmp_path_factory.mktemp("bpf") / "kernel_sample.bpf.o")


@pytest.fixture
def loaded(sample: Path) -> Iterator[BpfObject]:
    with BpfObject.load(sample, settings=Settings(mark=77, node=5).pack()) as found:
        yield found


def number(found: BpfObject, index: int) -> int:
    value = found.maps["numbers"].lookup(struct.pack("=I", index))
    assert value is not None
    return int(struct.unpack("=Q", value)[0])


def test_all_maps_and_programs_are_there(loaded: BpfObject) -> None:
    named = {name for name in loaded.maps if not name.startswith(".")}
    assert named == {"flows", "prefixes", "numbers", "stats", "odd"} and ".rodata.settings" in loaded.maps
    assert loaded.programs["tc_count"].type == ProgramType.SCHED_CLS
    assert loaded.programs["connect_refuse"].section == "cgroup/connect4"
    flows = loaded.maps["flows"]
    assert (flows.type, flows.key_size, flows.value_size) == (MapType.HASH, Flow.SIZE, Claim.SIZE)
    assert flows.max_entries == 64 and flows.id > 0
    assert len(loaded.programs["tc_drop"].tag) == 16


def test_programs_run_without_being_attached(loaded: BpfObject) -> None:
    frame = bytes(range(64))
    ran = loaded.programs["tc_count"].test_run(frame, repeat=3)
    assert (ran.retval, ran.data) == (0, frame)
    assert number(loaded, 0) == 3
    dropped = loaded.programs["tc_drop"].test_run(frame)
    assert dropped.retval == 2
    swapped = loaded.programs["xdp_swap"].test_run(frame)
    assert (swapped.retval, swapped.data) == (2, b"\xaa" + frame[1:])


def test_the_context_comes_back_with_what_the_program_wrote(loaded: BpfObject) -> None:
    context = bytes(192)  # struct __sk_buff; mark is its third word
    ran = loaded.programs["tc_count"].test_run(bytes(64), ctx=context)
    assert struct.unpack_from("=3I", ran.ctx)[2] == 77


def test_syscall_programs_take_their_argument_in_place(loaded: BpfObject) -> None:
    ran = loaded.programs["call_add"].test_run(ctx=SweepArgs(seen=4).pack())
    assert ran.retval == 7
    assert SweepArgs.unpack(ran.ctx) == SweepArgs(seen=4, reaped=9)


def test_a_frame_too_short_is_refused(loaded: BpfObject) -> None:
    with pytest.raises(OSError) as caught:
        loaded.programs["tc_count"].test_run(bytes(4))
    assert caught.value.errno == errno.EINVAL


def test_an_iterator_writes_text(loaded: BpfObject) -> None:
    text = run_iter(loaded.programs["iter_maps"])
    assert text.endswith("\n") and text.count("m") >= len(loaded.maps)


def test_hash_entries(loaded: BpfObject) -> None:
    flows = loaded.maps["flows"]
    key, claim = Flow(local_port=9001, proto=6).pack(), Claim(owner=1)
    assert flows.lookup(key) is None
    flows.update(key, claim.pack(), NOEXIST)
    with pytest.raises(FileExistsError):
        flows.update(key, Claim(owner=2).pack(), NOEXIST)
    assert flows.lookup(key) == claim.pack()
    flows.update(key, Claim(owner=3).pack(), EXIST)
    assert Claim.unpack(flows.lookup(key) or b"").owner == 3
    assert flows.delete(key) and not flows.delete(key)
    with pytest.raises(FileNotFoundError):
        flows.update(key, claim.pack(), EXIST)


def test_a_full_hash_says_so(loaded: BpfObject) -> None:
    flows = loaded.maps["flows"]
    for port in range(64):
        flows.update(Flow(local_port=port).pack(), Claim().pack())
    with pytest.raises(OSError) as caught:
        flows.update(Flow(local_port=64).pack(), Claim().pack())
    assert caught.value.errno == errno.E2BIG


def test_items_of_every_kind_of_map(loaded: BpfObject) -> None:
    flows, prefixes, numbers = (loaded.maps[name] for name in ("flows", "prefixes", "numbers"))
    wanted = {Flow(local_port=port).pack(): Claim(owner=port).pack() for port in range(50)}
    for key, value in wanted.items():
        flows.update(key, value)
    assert dict(flows.items()) == wanted and set(flows.keys()) == set(wanted) and len(flows) == 50

    networks = {prefix_key(16, IPv4Network((index << 24, 8))): struct.pack("=I", index) for index in range(1, 40)}
    for key, value in networks.items():
        prefixes.update(key, value)
    assert dict(prefixes.items()) == networks and len(list(prefixes.items())) == 39

    numbers.update(struct.pack("=I", 7), struct.pack("=Q", 1 << 40))
    assert len(numbers) == 8
    assert dict(numbers.items())[struct.pack("=I", 7)] == struct.pack("=Q", 1 << 40)
    with pytest.raises(OSError):
        numbers.delete(ZERO)


def test_many_items_in_several_batches(sample: Path) -> None:
    sizes = {"flows": 20_000, "absent": 1}
    with BpfObject.load(sample, map_sizes=sizes, programs=()) as found:
        flows = found.maps["flows"]
        assert flows.max_entries == 20_000 and not found.programs
        for port in range(15_000):
            flows.update(Flow(local_port=port).pack(), Claim(owner=port).pack())
        seen = [Claim.unpack(value).owner for _, value in flows.items()]
        assert sorted(seen) == list(range(15_000))


def test_iterating_while_entries_go(loaded: BpfObject) -> None:
    prefixes = loaded.maps["prefixes"]
    for index in range(1, 40):
        prefixes.update(prefix_key(16, IPv4Network((index << 24, 8))), ZERO)
    given = []
    for key, _ in prefixes.items():
        given.append(key)
        prefixes.delete(key)
    assert len(given) == len(set(given)) and len(prefixes) == 0


def test_per_cpu_values(loaded: BpfObject) -> None:
    cpus = possible_cpus()
    odd = loaded.maps["odd"]
    assert odd.lookup_percpu(ZERO) == []
    odd.update(ZERO, struct.pack("=I", 5))
    assert odd.lookup_percpu(ZERO) == [struct.pack("=I", 5)] * cpus
    each = b"".join(struct.pack("=Q", cpu) for cpu in range(cpus))
    odd.update(ZERO, each)
    assert odd.lookup_percpu(ZERO) == [struct.pack("=I", cpu) for cpu in range(cpus)]
    [(key, area)] = odd.items()
    assert key == ZERO and odd.split_percpu(area) == odd.lookup_percpu(ZERO)
    with pytest.raises(ValueError, match="not per CPU"):
        loaded.maps["flows"].lookup_percpu(Flow().pack())


def test_stats_are_summed(loaded: BpfObject) -> None:
    loaded.programs["tc_count"].test_run(bytes(64), repeat=5)
    stats = loaded.maps["stats"]
    drops, counters = sum_percpu(stats)
    assert counters[Counter.OUT_PACKETS] == 5 and sum(counters.values()) == 5
    assert set(drops) == set(Drop) and not any(drops.values())
    stats.update(ZERO, Stats(drops=tuple(range(48))).pack())
    drops, counters = sum_percpu(stats)
    assert drops[Drop.SLICE_FULL] == Drop.SLICE_FULL * possible_cpus() and not any(counters.values())


@pytest.mark.parametrize("size", [0, 39, 41])
def test_keys_and_values_of_another_size_are_refused(loaded: BpfObject, size: int) -> None:
    flows = loaded.maps["flows"]
    for attempt in (flows.lookup, flows.delete, lambda key: flows.update(key, Claim().pack())):
        with pytest.raises(ValueError, match=f"a key is 40 bytes, not {size}"):
            attempt(bytes(size))
    with pytest.raises(ValueError, match=f"a value is 56 bytes, not {size}"):
        flows.update(Flow().pack(), bytes(size))


def test_objects_share_maps_by_reuse(sample: Path, loaded: BpfObject) -> None:
    with BpfObject.load(sample, reuse={"numbers": loaded.maps["numbers"]}) as other:
        other.programs["tc_count"].test_run(bytes(64))
        assert number(loaded, 0) == 1
        assert other.maps["numbers"].id == loaded.maps["numbers"].id
        assert other.maps["flows"].id != loaded.maps["flows"].id


def test_objects_share_maps_by_pins(sample: Path) -> None:
    with pin_folder() as folder:
        with BpfObject.load(sample, pin_dir=folder) as first:
            ids = {name: found.id for name, found in first.maps.items()}
            first.programs["tc_count"].pin(folder / "progs" / "tc_count")
        pinned = {entry.name for entry in (folder / "maps").iterdir()}
        assert pinned == {"flows", "prefixes", "numbers", "stats", "odd"}
        with BpfObject.load(sample, pin_dir=folder) as second:
            assert {name: found.id for name, found in second.maps.items() if name in pinned} == {
                name: ids[name] for name in pinned
            }
            with Program.open_pinned(folder / "progs" / "tc_count") as program:
                program.test_run(bytes(64))
            assert number(second, 0) == 1
            with Map.open_pinned(folder / "maps" / "flows") as flows:
                assert (flows.name, flows.id) == ("flows", ids["flows"])
            with pytest.raises(FileExistsError):
                second.maps["flows"].pin(folder / "maps" / "flows")


def test_a_pinned_map_of_another_size_is_named(sample: Path) -> None:
    with pin_folder() as folder:
        BpfObject.load(sample, pin_dir=folder).close()
        with pytest.raises(KernelError, match=r"map pinned at .*/maps/flows has another layout or size") as caught:
            BpfObject.load(sample, pin_dir=folder, map_sizes={"flows": 128})
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("opened", [Map.open_pinned, Program.open_pinned])
def test_a_missing_pin_is_named(opened: type[Map]) -> None:
    with pin_folder() as folder, pytest.raises(KernelError, match=f"{folder}/none: No such file") as caught:
        opened(folder / "none")
    assert caught.value.errno == errno.ENOENT


REFUSED = """
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
SEC("tc") int careless(struct __sk_buff *skb)
{
	unsigned char *data = (void *)(long)skb->data;
	return data[20];
}
char _license[] SEC("license") = "GPL";
"""


def test_what_the_verifier_said_is_one_line_and_a_log(tmp_path: Path) -> None:
    source = tmp_path / "careless.bpf.c"
    source.write_text(REFUSED)
    built = compile_bpf(source, tmp_path / "careless.bpf.o")
    before = open_descriptors()
    with pytest.raises(KernelError) as caught:
        BpfObject.load(built)
    line = "load careless.bpf.o: program careless refused: R1 offset is outside of the packet"
    assert str(caught.value) == line
    assert caught.value.errno == errno.EACCES
    assert "invalid access to packet" in caught.value.log and caught.value.log.count("\n") > 5
    assert set(open_descriptors()) == set(before)


def test_what_is_no_object_is_refused(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match=r"open absent\.bpf\.o: No such file or directory"):
        BpfObject.load(tmp_path / "absent.bpf.o")
    (tmp_path / "text.bpf.o").write_text("not an ELF file")
    with pytest.raises(KernelError, match=r"open text\.bpf\.o: ") as caught:
        BpfObject.load(tmp_path / "text.bpf.o")
    assert "\n" not in str(caught.value)
    with pytest.raises(KernelError, match=r"absent\.bpf\.o: no such BPF object: build it"):
        object_path("absent")


def test_settings_that_do_not_fit_are_refused(sample: Path) -> None:
    size = Settings.SIZE
    with pytest.raises(KernelError, match=rf"\.rodata\.settings has {size} bytes, the settings {size + 1}"):
        BpfObject.load(sample, settings=bytes(size + 1))


def test_closing_leaves_no_descriptor(sample: Path) -> None:
    BpfObject.load(sample).close()  # the library's own caches
    before = open_descriptors()
    found = BpfObject.load(sample)
    found.close()
    found.close()
    assert set(open_descriptors()) == set(before)
    with pytest.raises(ValueError, match="map flows is closed"):
        found.maps["flows"].lookup(Flow().pack())
    with pytest.raises(ValueError, match="program tc_drop is closed"):
        found.programs["tc_drop"].test_run(bytes(64))


def test_bpffs_is_mounted_once() -> None:
    mount_bpffs()
    assert not mount_bpffs()
    assert os.path.ismount("/sys/fs/bpf")


def test_many_entries_are_written_at_once_to_every_kind_of_map(sample: Path) -> None:
    with BpfObject.load(sample, map_sizes={"flows": 70_000}) as loaded:
        flows = loaded.maps["flows"]
        entries = {
            Flow(local_port=port & 0xFFFF, remote_port=port >> 16, proto=6).pack(): Claim(owner=port).pack()
            for port in range(1, 70_000)
        }
        flows.update_many(entries)
        assert dict(flows.items()) == entries
        networks = {prefix_key(16, IPv4Network((index << 24, 8))): struct.pack("=I", index) for index in range(1, 40)}
        loaded.maps["prefixes"].update_many(networks)
        assert dict(loaded.maps["prefixes"].items()) == networks
        loaded.maps["numbers"].update_many({struct.pack("=I", n): struct.pack("=Q", n) for n in range(8)})
        assert [int.from_bytes(value, "little") for _, value in sorted(loaded.maps["numbers"].items())] == list(
            range(8)
        )
        numbers = loaded.maps["numbers"]
        room = numbers.max_entries
        for count in (0, 1, 5, room, room + 1):
            found = numbers.elements(count)
            assert dict(found) == dict(list(numbers.items())[1 : min(count, 8)]), "element 0 is zeros"
        with pytest.raises(ValueError, match="map flows is no array"):
            flows.elements(1)
        with pytest.raises(ValueError, match="a value is"):
            flows.update_many({Flow(proto=1).pack(): b"short"})
        with pytest.raises(OSError, match="Argument list too long"):
            flows.update_many({Flow(local_port=n, proto=99).pack(): Claim().pack() for n in range(10_000)})
