# SPDX-License-Identifier: Apache-2.0
"""The codec: what goes in comes out, and the bytes are those the kernel compares."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import pickle
import re
import struct
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from softunicast.kernel import abi
from softunicast.kernel.abi_util import (
    Word,
    addr_bytes,
    addr_ip,
    key_prefix,
    prefix_key,
    word_generation,
    word_seen_s,
    word_state,
)

BITS = {"B": 8, "H": 16, "I": 32, "Q": 64}
CLASSES = {
    name: value for name, value in vars(abi).items() if inspect.isclass(value) and dataclasses.is_dataclass(value)
}
ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


def values_of(cls: Any) -> st.SearchStrategy[Any]:
    """All values of a generated class, its bounds taken from its own format."""
    tokens = [
        (int(count or 1), code) for count, code in re.findall(r"(\d*)([a-zA-Z])", cls._CODEC.format) if code != "x"
    ]
    arguments = {}
    for field, (count, code) in zip(dataclasses.fields(cls), tokens, strict=True):
        if field.type in CLASSES:
            arguments[field.name] = values_of(CLASSES[str(field.type)])
        elif code == "s":
            arguments[field.name] = st.binary(min_size=count, max_size=count)
        else:
            bits = BITS[code.upper()]
            signed = st.integers(-(1 << bits - 1), (1 << bits - 1) - 1)
            integer = signed if code.islower() else st.integers(0, (1 << bits) - 1)
            many = st.lists(integer, min_size=count, max_size=count).map(tuple)
            arguments[field.name] = many if field.type == "tuple[int, ...]" else integer
    return st.builds(cls, **arguments)


@pytest.mark.parametrize("name", sorted(CLASSES))
@settings(max_examples=25)
@given(data=st.data())
def test_round_trip(name: str, data: st.DataObject) -> None:
    cls = CLASSES[name]
    value = data.draw(values_of(cls))
    packed = value.pack()
    assert len(packed) == cls.SIZE
    assert cls.unpack(packed) == value
    assert cls.unpack(memoryview(packed)).pack() == packed
    assert hash(value) == hash(cls.unpack(packed))


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_defaults_are_zeros(name: str) -> None:
    cls = CLASSES[name]
    assert cls().pack() == bytes(cls.SIZE)


@pytest.mark.parametrize("name", sorted(CLASSES))
@settings(max_examples=5)
@given(data=st.data())
def test_behaves_as_a_frozen_dataclass(name: str, data: st.DataObject) -> None:
    cls = CLASSES[name]
    value = data.draw(values_of(cls))
    first = dataclasses.fields(cls)[0]
    own = {field.name: getattr(value, field.name) for field in dataclasses.fields(cls)}
    assert dataclasses.replace(value) == value == cls(*own.values()) == cls(**own)
    changed = dataclasses.replace(
        value, **{first.name: data.draw(values_of(cls).map(lambda v: getattr(v, first.name)))}
    )
    assert (changed == value) == (getattr(changed, first.name) == own[first.name])
    assert value != tuple(own.values())
    assert eval(repr(value), vars(abi)) == value
    assert copy.deepcopy(value) == copy.copy(value) == pickle.loads(pickle.dumps(value)) == value
    with pytest.raises(dataclasses.FrozenInstanceError, match=first.name):
        setattr(value, first.name, own[first.name])
    with pytest.raises(dataclasses.FrozenInstanceError, match=first.name):
        delattr(value, first.name)
    with pytest.raises(AttributeError):
        object.__setattr__(value, "unknown", 1)


@pytest.mark.parametrize("name", sorted(CLASSES))
@pytest.mark.parametrize("change", [-1, 1])
def test_another_length_is_refused(name: str, change: int) -> None:
    cls = CLASSES[name]
    with pytest.raises(struct.error):
        cls.unpack(bytes(cls.SIZE + change))


def test_a_flow_is_in_network_byte_order() -> None:
    flow = abi.Flow(
        local=addr_bytes(IPv4Address("198.51.100.20")),
        remote=addr_bytes(IPv4Address("203.0.113.1")),
        local_port=9001,
        remote_port=443,
        proto=6,
    )
    mapped = "00000000000000000000ffff"
    assert flow.pack().hex() == f"{mapped}c6336414{mapped}cb007101232901bb06000000"


def test_numbers_compared_in_the_kernel_are_in_host_order() -> None:
    piece = abi.Slice(first=9000, last=9009, flags=abi.SliceFlag.LIVE, claim_until_ns=1)
    assert piece.pack()[16:24] == struct.pack("=HHHH", 9000, 9009, 0, 1)


def test_an_address_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match="16 bytes, not 4"):
        abi.Flow(local=bytes(4)).pack()
    with pytest.raises(ValueError, match="16 bytes, not 4"):
        addr_ip(bytes(4))


@pytest.mark.parametrize("port", [-1, 65536])
def test_a_port_out_of_range_is_refused(port: int) -> None:
    with pytest.raises(OverflowError):
        abi.Flow(local_port=port).pack()


@given(ADDRESSES)
def test_addresses_round_trip(address: IPv4Address | IPv6Address) -> None:
    shown = addr_ip(addr_bytes(address))
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    assert shown == (mapped or address)


def test_ipv4_is_mapped() -> None:
    assert addr_bytes(ip_address("198.51.100.10")) == ip_address("::ffff:198.51.100.10").packed


@given(st.integers(0, (1 << 24) - 1), st.sampled_from(abi.State), st.integers(0, (1 << 32) - 1))
def test_words_round_trip(generation: int, state: abi.State, seen_s: int) -> None:
    word = Word(generation, state, seen_s).pack()
    assert 0 <= word < 1 << 64
    assert Word.unpack(word) == Word(generation, state, seen_s)
    assert (word_generation(word), word_state(word), word_seen_s(word)) == (generation, state, seen_s)


def test_a_word_is_laid_out_as_the_header_says() -> None:
    assert Word(0xABCDEF, abi.State.OPEN, 0x12345678).pack() == 0xABCDEF_02_12345678
    with pytest.raises(ValueError, match="not a valid State"):
        Word.unpack(0xFF << 32)


@given(ADDRESSES, st.data(), st.integers(0, (1 << 32) - 1))
def test_prefix_keys_round_trip(address: IPv4Address | IPv6Address, data: st.DataObject, number: int) -> None:
    length = data.draw(st.integers(0, address.max_prefixlen))
    network = ip_network((address, length), strict=False)
    found_number, found = key_prefix(prefix_key(number, network))
    assert found_number == number
    if isinstance(network, IPv6Network) and network.network_address.ipv4_mapped is not None and length >= 96:
        network = IPv4Network((network.network_address.ipv4_mapped, length - 96))
    assert found == network


def test_a_prefix_key_counts_list_and_mapping() -> None:
    key = prefix_key(16, IPv4Network("10.0.0.0/8"))
    assert struct.unpack_from("=I", key)[0] == 32 + 96 + 8
    assert key[4:8] == b"\0\0\0\x10"
