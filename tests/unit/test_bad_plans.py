# SPDX-License-Identifier: Apache-2.0
"""Every kind of bad plan and bindings file, and the one line each gives. The texts are part of the product."""

from __future__ import annotations

from pathlib import Path

import pytest

from softunicast.cli.main import run
from softunicast.errors import PlanError
from softunicast.model.allocator import allocate
from softunicast.model.binding import check_bindings
from softunicast.model.bindings_file import HEADER, dump_bindings, load_bindings, read_bindings
from softunicast.model.plan import load_plan

BASE = """\
prefixes:
  - {prefix: 198.51.100.0/24, announce: [lhr, cdg]}
  - {prefix: "2001:db8::/48", announce: [lhr]}
sites:
  lhr:
    nodes:
      lhr1:
        underlay: 10.0.1.11
        uplinks: [eth0]
        onramps:
          vpn: {device: wg0, pool: gb, sources: 10.64.0.0/24, gateway4: 10.64.0.1}
      lhr2: {underlay: 10.0.1.12}
  cdg:
    nodes:
      cdg1: {underlay: 10.0.2.11}
pools:
  gb: {addresses: [198.51.100.10-198.51.100.13], site: lhr, slice_ports: 2048, tags: {country: GB}}
  ten: {site: lhr, slices: [{slice: "198.51.100.20:9000-9009", node: lhr1}]}
  six: {site: lhr, prefix: "2001:db8:0:100::/64"}
settings: {mark: 0x20000000, timers: {udp_s: 300}}
"""

Change = str | tuple[tuple[str, str], ...]

# What is wrong; the whole text or (old, new) of BASE; the line without its "plan.yaml:".
PLANS: tuple[tuple[str, Change, str], ...] = (
    ("empty file", "", "1: the file is empty ; begin with the example in docs/plan.md"),
    ("only a comment", "# nothing\n", "1: the file is empty ; begin with the example in docs/plan.md"),
    ("a list", "- 1\n", ("1: the file is no mapping of keys to values ; begin with the example in docs/plan.md")),
    ("text", "hello\n", ("1: the file is no mapping of keys to values ; begin with the example in docs/plan.md")),
    (
        "tab in indentation",
        (("    nodes:\n      cdg1", "\tnodes:\n      cdg1"),),
        "14: a tab in the indentation ; indent with spaces",
    ),
    (
        "unclosed bracket",
        (("uplinks: [eth0]", "uplinks: [eth0"),),
        ("10: not YAML: expected ',' or ']', but got ':' ; mend the indentation, quotes and brackets near that line"),
    ),
    (
        "unclosed quote",
        (('"2001:db8::/48"', '"2001:db8::/48'),),
        (
            "18: not YAML: expected ',' or '}', but got '<scalar>' ; mend the indentation, quotes and "
            "brackets near that line"
        ),
    ),
    (
        "colon in text",
        (("underlay: 10.0.1.11", "underlay: 10.0.1.11: x"),),
        ("8: not YAML: mapping values are not allowed here ; put text with `: ` in quotes, or mend the indentation"),
    ),
    (
        "undefined alias",
        (("underlay: 10.0.1.11", "underlay: *lhr1"),),
        ("8: not YAML: found undefined alias 'lhr1' ; define it with & before, or put the text in quotes"),
    ),
    (
        "two documents",
        (("sites:\n", "---\nsites:\n"),),
        ("4: not YAML: but found another document ; one file holds one document: remove the second `---`"),
    ),
    (
        "unknown strategy",
        (("gateway4: 10.64.0.1", "gateway4: 10.64.0.1, strategy: snat"),),
        "11: sites.lhr.nodes.lhr1.onramps.vpn.strategy: 'snat' is none of these: bpf, terminate ; write one of them",
    ),
    (
        "handshake of packets",
        (("gateway4: 10.64.0.1", "gateway4: 10.64.0.1, handshake: early"),),
        "11: sites.lhr.nodes.lhr1.onramps.vpn.handshake: only TCP that is terminated has a handshake of its own ; "
        "add `strategy: terminate`, or remove it",
    ),
    (
        "log of terminated TCP somewhere",
        (("timers: {udp_s: 300}", "terminate: {access_log: log.json}"),),
        "20: settings.terminate.access_log: 'log.json' is no absolute path ; "
        "begin it with /, such as /var/log/terminated.log",
    ),
    ("control character", (("wg0", "wg\x07"),), "11: a character that YAML does not allow ; remove it; save as UTF-8"),
    (
        "a tag",
        (("underlay: 10.0.1.11", "underlay: !ip 10.0.1.11"),),
        ("8: sites.lhr.nodes.lhr1.underlay: the tag '!ip' is not used here ; remove it, or put the text in quotes"),
    ),
    (
        "merge key",
        (("      lhr2: {underlay", "      lhr2: {<<: {weight: 2}, underlay"),),
        ("12: sites.lhr.nodes.lhr2: merge keys (<<) are not used here ; write the keys out"),
    ),
    (
        "duplicate key",
        (("      lhr2: {", "      lhr1: {"),),
        "12: sites.lhr.nodes.lhr1: given twice, first in line 7 ; keep one of them",
    ),
    (
        "key is a list",
        (("settings: {mark", "[a]: 1\nsettings: {mark"),),
        "20: a key that is a list or mapping ; keys are words",
    ),
    (
        "too deep",
        (("tags: {country: GB}", "tags: " + "[" * 40 + "]" * 40),),
        (
            "17: "
            "pools.gb.tags[0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0][0]...:"
            " nested too deeply ; a plan has at most 32 levels"
        ),
    ),
    (
        "far too deep",
        (("tags: {country: GB}", "tags: " + "[" * 4000 + "]" * 4000),),
        "17: nested too deeply ; a plan has at most 32 levels",
    ),
    (
        "unknown top key",
        (("settings: {mark", "seting: 1\nsettings: {mark"),),
        "20: seting: unknown key ; did you mean `settings`?",
    ),
    ("misspelt top key", (("sites:\n", "site:\n"),), "4: site: unknown key ; did you mean `sites`?"),
    (
        "misspelt node key",
        (("uplinks: [eth0]", "uplink: [eth0]"),),
        "9: sites.lhr.nodes.lhr1.uplink: unknown key ; did you mean `uplinks`?",
    ),
    (
        "misspelt on-ramp key",
        (("sources: 10.64", "source: 10.64"),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.source: unknown key ; did you mean `sources`?"),
    ),
    (
        "misspelt pool key",
        (("slice_ports: 2048", "slice_port: 2048"),),
        "17: pools.gb.slice_port: unknown key ; did you mean `slice_ports`?",
    ),
    ("misspelt timer", (("udp_s: 300", "udp: 300"),), "20: settings.timers.udp: unknown key ; did you mean `udp_s`?"),
    (
        "nothing like a key",
        (("tags: {country: GB}", "colour: blue"),),
        (
            "17: pools.gb.colour: unknown key ; known keys: site, addresses, prefix, count, "
            "slice_ports, slice_ports6, slices, nodes, tags"
        ),
    ),
    (
        "no prefixes",
        "sites: {lhr: {nodes: {lhr1: {underlay: 10.0.1.11}}}}\npools: {}\n",
        "1: prefixes: missing ; add `prefixes: [{prefix: 198.51.100.0/24}]`",
    ),
    (
        "alias of itself",
        (("tags: {country: GB}", "tags: &t {country: [*t]}"),),
        " more than 1000000 values ; use fewer aliases, or ranges",
    ),
    (
        "underlay missing",
        (("{underlay: 10.0.1.12}", "{weight: 1}"),),
        "12: sites.lhr.nodes.lhr2.underlay: missing ; add `underlay: 10.0.1.11`",
    ),
    (
        "node empty",
        (("lhr2: {underlay: 10.0.1.12}", "lhr2:"),),
        ("13: sites.lhr.nodes.lhr2: a mapping is wanted, not nothing ; fill it in or remove the key"),
    ),
    (
        "site of pool missing",
        (("site: lhr, slice_ports", "slice_ports"),),
        "17: pools.gb.site: missing ; add `site: lhr`",
    ),
    (
        "sources missing",
        (("sources: 10.64.0.0/24, ", ""),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.sources: missing ; add `sources: 10.1.0.0/24`"),
    ),
    (
        "number for text",
        (("underlay: 10.0.1.12", "underlay: 10"),),
        "12: sites.lhr.nodes.lhr2.underlay: text is wanted, not 10 ; put it in quotes",
    ),
    (
        "text for number",
        (("slice_ports: 2048", "slice_ports: '2048'"),),
        ("17: pools.gb.slice_ports: a whole number is wanted, not '2048' ; write a whole number"),
    ),
    (
        "list for mapping",
        (("cdg1: {underlay: 10.0.2.11}", "cdg1: [10.0.2.11]"),),
        "15: sites.cdg.nodes.cdg1: a mapping is wanted, not a list ; write a mapping",
    ),
    (
        "mapping for list",
        (('slices: [{slice: "198.51.100.20:9000-9009", node: lhr1}]', "slices: {a: 1}"),),
        "18: pools.ten.slices: a list is wanted, not a mapping ; write a list",
    ),
    (
        "number among texts",
        (("uplinks: [eth0]", "uplinks: [eth0, 1]"),),
        "9: sites.lhr.nodes.lhr1.uplinks[1]: text is wanted, not 1 ; put it in quotes",
    ),
    (
        "text for boolean",
        (("settings: {mark", "settings: {answer_ping: yes, mark"),),
        ("20: settings.answer_ping: true or false is wanted, not 'yes' ; write true or false"),
    ),
    (
        "fraction for whole number",
        (("udp_s: 300", "udp_s: 0.5"),),
        ("20: settings.timers.udp_s: a whole number is wanted, not 0.5 ; write a whole number"),
    ),
    ("timer zero", (("udp_s: 300", "udp_s: 0"),), "20: settings.timers.udp_s: 0 is out of range ; at least 1"),
    (
        "timer too long",
        (("udp_s: 300", "udp_s: 99999999"),),
        "20: settings.timers.udp_s: 99999999 is out of range ; at most 604800",
    ),
    (
        "gue port",
        (("settings: {mark", "settings: {gue_port: 70000, mark"),),
        "20: settings.gue_port: 70000 is out of range ; at most 65535",
    ),
    (
        "fraction",
        (("settings: {mark", "settings: {udp_wildcard_fraction: 2, mark"),),
        "20: settings.udp_wildcard_fraction: 2 is out of range ; at most 0.9",
    ),
    (
        "few flows",
        (("settings: {mark", "settings: {flows: 10, mark"),),
        "20: settings.flows: 10 is out of range ; at least 1024",
    ),
    (
        "mark outside mask",
        (("mark: 0x20000000", "mark: 0x30000000, mark_mask: 0x20000000"),),
        ("20: settings.mark: 0x30000000 has bits outside mark_mask 0x20000000 ; widen the mask or change the mark"),
    ),
    (
        "weight zero",
        (("{underlay: 10.0.1.12}", "{underlay: 10.0.1.12, weight: 0}"),),
        "12: sites.lhr.nodes.lhr2.weight: 0 is out of range ; at least 1",
    ),
    (
        "bad node name",
        (("lhr2:", "lhr/2:"),),
        (
            "12: sites.lhr.nodes.lhr/2: 'lhr/2' is no name ; use up to 63 letters, digits, `-`, `_` and"
            " `.`, a letter or digit first"
        ),
    ),
    (
        "bad pool name",
        (("  six:", "  '-six':"),),
        ("19: pools.-six: '-six' is no name ; use up to 63 letters, digits, `-`, `_` and `.`, a letter or digit first"),
    ),
    (
        "bad device",
        (("device: wg0", "device: a-name-that-is-too-long"),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.device: 'a-name-that-is-too-long' is no device name ;"
            " use at most 15 characters, no space, `/` or `:`"
        ),
    ),
    (
        "prefix list empty",
        "prefixes: []\nsites: {lhr: {nodes: {lhr1: {underlay: 10.0.1.11}}}}\npools: {}\n",
        "1: prefixes: no prefix ; add `- {prefix: 198.51.100.0/24}`",
    ),
    (
        "bad prefix",
        (("198.51.100.0/24", "198.51.100.0/33"),),
        ("2: prefixes[0].prefix: '198.51.100.0/33' is no prefix ; write one such as 198.51.100.0/24"),
    ),
    (
        "host bits",
        (("198.51.100.0/24", "198.51.100.1/24"),),
        ("2: prefixes[0].prefix: 198.51.100.1/24 has bits set behind its length ; write 198.51.100.0/24"),
    ),
    (
        "overlapping prefixes",
        (('"2001:db8::/48", announce: [lhr]', "198.51.100.128/25"),),
        ("3: prefixes[1].prefix: 198.51.100.128/25 overlaps 198.51.100.0/24 ; keep the wider one"),
    ),
    (
        "multicast prefix",
        (("198.51.100.0/24", "239.1.0.0/16"),),
        (
            "2: prefixes[0].prefix: 239.1.0.0/16 is multicast (224.0.0.0/4) ; use addresses that the "
            "Internet routes to you"
        ),
    ),
    (
        "mapped prefix",
        (('"2001:db8::/48"', '"::ffff:198.51.100.0/120"'),),
        ("3: prefixes[1].prefix: ::ffff:198.51.100.0/120 is IPv4 in IPv6's clothes ; write it as IPv4"),
    ),
    (
        "announced from nowhere",
        (("announce: [lhr, cdg]", "announce: []"),),
        ("2: prefixes[0].announce: no site announces it ; name sites, or leave `announce` out for all"),
    ),
    (
        "unknown site announces",
        (("announce: [lhr, cdg]", "announce: [lhr, cdf]"),),
        "2: prefixes[0].announce[1]: no site 'cdf' ; there are: cdg, lhr",
    ),
    (
        "site announces twice",
        (("announce: [lhr, cdg]", "announce: [lhr, lhr]"),),
        "2: prefixes[0].announce[1]: lhr is named twice ; keep one of them",
    ),
    (
        "no sites",
        "prefixes: [{prefix: 198.51.100.0/24}]\nsites: {}\npools: {}\n",
        "2: sites: no site ; add `lhr: {nodes: {lhr1: {underlay: 10.0.1.11}}}`",
    ),
    (
        "bad underlay",
        (("10.0.1.12", "10.0.1.300"),),
        (
            "12: sites.lhr.nodes.lhr2.underlay: '10.0.1.300' is no IPv4 or IPv6 address ; write one "
            "such as 198.51.100.10"
        ),
    ),
    (
        "underlay with length",
        (("10.0.1.12", "10.0.1.12/24"),),
        ("12: sites.lhr.nodes.lhr2.underlay: 10.0.1.12/24 is a prefix, an address is wanted ; leave out the /"),
    ),
    (
        "underlay with zone",
        (("10.0.1.12", '"fe80::1%eth0"'),),
        ("12: sites.lhr.nodes.lhr2.underlay: fe80::1%eth0 has a zone ; leave out the %eth0"),
    ),
    (
        "underlay loopback",
        (("10.0.1.12", "127.0.0.1"),),
        ("12: sites.lhr.nodes.lhr2.underlay: 127.0.0.1 is loopback ; use the address that other nodes reach it by"),
    ),
    (
        "underlay within a prefix",
        (("10.0.1.12", "198.51.100.99"),),
        (
            "12: sites.lhr.nodes.lhr2.underlay: 198.51.100.99 is within the fleet's prefix "
            "198.51.100.0/24 ; use an address of the node's own, which no other site announces"
        ),
    ),
    (
        "underlay twice",
        (("10.0.2.11", "10.0.1.11"),),
        "15: sites.cdg.nodes.cdg1.underlay: 10.0.1.11 is lhr1's ; give each node its own",
    ),
    (
        "two underlays of one family",
        (("underlay: 10.0.1.12", "underlay: [10.0.1.12, 10.0.1.13]"),),
        "12: sites.lhr.nodes.lhr2.underlay: 10.0.1.12 and 10.0.1.13 are of one family ; name one address, "
        "or one IPv4 and one IPv6",
    ),
    (
        "no underlay",
        (("underlay: 10.0.1.12", "underlay: []"),),
        "12: sites.lhr.nodes.lhr2.underlay: no address ; name the address that other nodes reach it by",
    ),
    (
        "no underlay family in common",
        (("underlay: 10.0.1.12", 'underlay: "fd00:1::12"'),),
        "12: sites.lhr.nodes.lhr2.underlay: fd00:1::12 is IPv6, lhr1's 10.0.1.11 is IPv4: neither can carry to the "
        "other ; give lhr2 an IPv4 address too: `underlay: [fd00:1::12, ...]`",
    ),
    (
        "most have no underlay family in common with one",
        (("underlay: 10.0.1.12", 'underlay: "fd00:1::12"'), ("underlay: 10.0.2.11", 'underlay: "fd00:2::11"')),
        "8: sites.lhr.nodes.lhr1.underlay: 10.0.1.11 is IPv4, lhr2's fd00:1::12 is IPv6: neither can carry to the "
        "other ; give lhr1 an IPv6 address too: `underlay: [10.0.1.11, ...]`",
    ),
    (
        "node in two sites",
        (("cdg1:", "lhr1:"),),
        "15: sites.cdg.nodes.lhr1: site lhr has a node of this name ; rename one of them",
    ),
    (
        "uplink twice",
        (("uplinks: [eth0]", "uplinks: [eth0, eth0]"),),
        "9: sites.lhr.nodes.lhr1.uplinks[1]: eth0 is named twice ; keep one of them",
    ),
    (
        "no way to attach",
        (("uplinks: [eth0]", "attach: dpdk"),),
        "9: sites.lhr.nodes.lhr1.attach: 'dpdk' is no way to attach ; one of auto, xdp, xdp-generic, tc",
    ),
    (
        "no way to attach a device",
        (("uplinks: [eth0]", "attach: {eth0: dpdk}"),),
        "9: sites.lhr.nodes.lhr1.attach.eth0: 'dpdk' is no way to attach ; one of auto, xdp, xdp-generic, tc",
    ),
    (
        "attach of what is no uplink",
        (("uplinks: [eth0]", "uplinks: [eth0]\n        attach: {eth1: tc}"),),
        "10: sites.lhr.nodes.lhr1.attach.eth1: no uplink 'eth1' ; there are: eth0",
    ),
    (
        "attach of what is no device",
        (("uplinks: [eth0]", "attach: {a/b: tc}"),),
        "9: sites.lhr.nodes.lhr1.attach.a/b: 'a/b' is no device name ; use at most 15 characters, no space, `/` or `:`",
    ),
    (
        "attach of no text",
        (("uplinks: [eth0]", "attach: 7"),),
        "9: sites.lhr.nodes.lhr1.attach: a mapping is wanted, not 7 ; write a mapping",
    ),
    (
        "too many uplinks",
        (("uplinks: [eth0]", "uplinks: [e0, e1, e2, e3, e4, e5, e6, e7, e8]"),),
        "9: sites.lhr.nodes.lhr1.uplinks: 9 uplinks ; name at most 8",
    ),
    (
        "bad bypass",
        (("{underlay: 10.0.1.12}", "{underlay: 10.0.1.12, bypass: [10.0.0.0/8, ten]}"),),
        ("12: sites.lhr.nodes.lhr2.bypass[1]: 'ten' is no prefix ; write one such as 198.51.100.0/24"),
    ),
    (
        "unknown site of pool",
        (("site: lhr, slice_ports", "site: lhx, slice_ports"),),
        "17: pools.gb.site: no site 'lhx' ; there are: cdg, lhr",
    ),
    (
        "no power of two",
        (("slice_ports: 2048", "slice_ports: 2000"),),
        ("17: pools.gb.slice_ports: 2000 is no power of two from 1 to 65536 ; write 1024, for example"),
    ),
    (
        "negative slice_ports",
        (("slice_ports: 2048", "slice_ports: -5"),),
        ("17: pools.gb.slice_ports: -5 is no power of two from 1 to 65536 ; write 1, for example"),
    ),
    (
        "slice_ports too large",
        (("slice_ports: 2048", "slice_ports: 131072"),),
        ("17: pools.gb.slice_ports: 131072 is no power of two from 1 to 65536 ; write 65536, for example"),
    ),
    (
        "pool of nothing",
        (("addresses: [198.51.100.10-198.51.100.13], site: lhr, slice_ports: 2048", "site: lhr"),),
        ("17: pools.gb: has neither addresses nor slices ; add `addresses: 198.51.100.10` or `slices: [...]`"),
    ),
    (
        "slice_ports without addresses",
        (("ten: {site: lhr", "ten: {site: lhr, slice_ports: 64"),),
        "18: pools.ten.slice_ports: means nothing without addresses ; remove it",
    ),
    (
        "bad address",
        (("198.51.100.10-198.51.100.13", "198.51.100.256"),),
        ("17: pools.gb.addresses[0]: '198.51.100.256' is no IPv4 or IPv6 address ; write one such as 198.51.100.10"),
    ),
    (
        "mapped address",
        (("198.51.100.10-198.51.100.13", '"::ffff:198.51.100.10"'),),
        ("17: pools.gb.addresses[0]: ::ffff:198.51.100.10 is IPv4 in IPv6's clothes ; write 198.51.100.10"),
    ),
    (
        "address with zone",
        (("198.51.100.10-198.51.100.13", '"2001:db8::1%1"'),),
        "17: pools.gb.addresses[0]: 2001:db8::1%1 has a zone ; leave out the %1",
    ),
    (
        "range backwards",
        (("198.51.100.10-198.51.100.13", "198.51.100.13-198.51.100.10"),),
        ("17: pools.gb.addresses[0]: 198.51.100.13-198.51.100.10 ends before it begins ; swap the two addresses"),
    ),
    (
        "range of two families",
        (("198.51.100.10-198.51.100.13", '"198.51.100.10-2001:db8::1"'),),
        ("17: pools.gb.addresses[0]: 198.51.100.10-2001:db8::1 mixes IPv4 and IPv6 ; both ends must be of one family"),
    ),
    (
        "endless range",
        (("198.51.100.10-198.51.100.13", "198.0.0.0-198.51.100.13"),),
        ("17: pools.gb.addresses[0]: 198.0.0.0-198.51.100.13 holds more than 65536 addresses ; split it over pools"),
    ),
    (
        "endless prefix",
        (("198.51.100.10-198.51.100.13", '"2001:db8::/64"'),),
        (
            "17: pools.gb.addresses[0]: 2001:db8::/64 holds more than 65536 addresses ; write a range "
            "or `prefix` and `count`"
        ),
    ),
    (
        "address in no prefix",
        (("198.51.100.10-198.51.100.13", "203.0.113.5"),),
        ("17: pools.gb.addresses[0]: 203.0.113.5 is within no prefix of the plan ; add its prefix to `prefixes`"),
    ),
    (
        "prefix not announced there",
        (("announce: [lhr, cdg]", "announce: [cdg]"),),
        (
            "17: pools.gb.addresses[0]: 198.51.100.10 is within 198.51.100.0/24, which site lhr does "
            "not announce ; add lhr to its `announce`"
        ),
    ),
    (
        "address twice in a pool",
        (("[198.51.100.10-198.51.100.13]", "[198.51.100.10-198.51.100.13, 198.51.100.12]"),),
        ("17: pools.gb.addresses[1]: 198.51.100.12 is already in this pool ; an address belongs to one pool, once"),
    ),
    (
        "address in two pools",
        (("198.51.100.20:9000", "198.51.100.12:9000"),),
        ("18: pools.ten.slices[0].slice: 198.51.100.12 is already in pool gb ; an address belongs to one pool, once"),
    ),
    (
        "IPv4 prefix key",
        (('prefix: "2001:db8:0:100::/64"', "prefix: 198.51.100.32/28"),),
        ("19: pools.six.prefix: 198.51.100.32/28 is IPv4 ; write `addresses: 198.51.100.32/28`"),
    ),
    (
        "too many of a prefix",
        (('prefix: "2001:db8:0:100::/64"', 'prefix: "2001:db8:0:100::/127", count: 2'),),
        (
            "19: pools.six.prefix: 2001:db8:0:100::/127 has room for 1, 2 addresses are wanted ; use a "
            "wider prefix, or `count`"
        ),
    ),
    (
        "count without prefix",
        (('prefix: "2001:db8:0:100::/64"', 'addresses: "2001:db8::1", count: 2'),),
        ("19: pools.six.count: means nothing without `prefix` ; remove it, or add `prefix`"),
    ),
    (
        "unknown node of pool",
        (("six: {site: lhr", "six: {nodes: [lhr9], site: lhr"),),
        "19: pools.six.nodes[0]: no node 'lhr9' ; there are: cdg1, lhr1, lhr2",
    ),
    (
        "node of another site",
        (("six: {site: lhr", "six: {nodes: [cdg1], site: lhr"),),
        ("19: pools.six.nodes[0]: cdg1 is of site cdg, the pool of lhr ; name a node of the pool's site"),
    ),
    (
        "node twice",
        (("six: {site: lhr", "six: {nodes: [lhr1, lhr1], site: lhr"),),
        "19: pools.six.nodes[1]: lhr1 is named twice ; keep one of them",
    ),
    (
        "no nodes",
        (("six: {site: lhr", "six: {nodes: [], site: lhr"),),
        ("19: pools.six.nodes: no node ; name nodes, or leave `nodes` out for all of the site"),
    ),
    (
        "site without nodes",
        (
            (
                "      cdg1: {underlay: 10.0.2.11}\npools:\n",
                "      {}\npools:\n  fr: {site: cdg, addresses: 198.51.100.30}\n",
            ),
        ),
        "17: pools.fr.site: site cdg has no nodes ; add a node to the site",
    ),
    (
        "tag is a number",
        (("country: GB", "country: 44"),),
        "17: pools.gb.tags.country: text is wanted, not 44 ; put it in quotes",
    ),
    (
        "too many pools' addresses",
        (
            (
                "198.51.100.10-198.51.100.13], site: lhr, slice_ports: 2048",
                "198.51.100.64/26], site: lhr, slice_ports: 1",
            ),
        ),
        (
            "17: pools: 4227074 steering entries at one site, at most 1048576 fit ; use larger slice_ports, or "
            "static slices of fewer addresses"
        ),
    ),
    (
        "bad slice",
        (("198.51.100.20:9000-9009", "198.51.100.20"),),
        (
            "18: pools.ten.slices[0].slice: '198.51.100.20' is no slice ; write address:first-last, "
            "such as 198.51.100.20:9000-9009 or [2001:db8::1]:1024-65535"
        ),
    ),
    (
        "slice with brackets",
        (("198.51.100.20:9000-9009", "[198.51.100.20]:9000-9009"),),
        ("18: pools.ten.slices[0].slice: [198.51.100.20]:9000-9009 has brackets around IPv4 ; leave them out"),
    ),
    (
        "slice backwards",
        (("9000-9009", "9009-9000"),),
        ("18: pools.ten.slices[0].slice: ports 9009-9000 end before they begin ; swap them"),
    ),
    (
        "slice beyond",
        (("9000-9009", "65000-70000"),),
        ("18: pools.ten.slices[0].slice: ports 65000-70000 are not within 0-65535 ; mend the range"),
    ),
    (
        "reserved ports",
        (("9000-9009", "1000-1100"),),
        ("18: pools.ten.slices[0].slice: 198.51.100.20:1000-1100 has ports below 1024 ; begin at 1024 or above"),
    ),
    (
        "slices overlap",
        (("node: lhr1}]", 'node: lhr1}, {slice: "198.51.100.20:9009", node: lhr2}]'),),
        (
            "18: pools.ten.slices[1].slice: 198.51.100.20:9009-9009 overlaps 198.51.100.20:9000-9009 ; "
            "give each port once"
        ),
    ),
    (
        "slice of unknown node",
        (("node: lhr1}]", "node: lhr7}]"),),
        "18: pools.ten.slices[0].node: no node 'lhr7' ; there are: cdg1, lhr1, lhr2",
    ),
    (
        "slice of another site's node",
        (("node: lhr1}]", "node: cdg1}]"),),
        ("18: pools.ten.slices[0].node: cdg1 is of site cdg, the pool of lhr ; name a node of the pool's site"),
    ),
    (
        "slice of a node out of the pool",
        (("ten: {site: lhr", "ten: {nodes: [lhr2], site: lhr"),),
        ("18: pools.ten.slices[0].node: lhr1 is not among the pool's nodes ; add it to `nodes`"),
    ),
    (
        "on-ramp on the uplink",
        (("device: wg0", "device: eth0"),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.device: eth0 is an uplink ; an on-ramp has a device of its own"),
    ),
    (
        "device of two on-ramps",
        (
            (
                "gateway4: 10.64.0.1}\n",
                "gateway4: 10.64.0.1}\n          two: {device: wg0, pool: gb, sources: 10.65.0.0/24}\n",
            ),
        ),
        ("12: sites.lhr.nodes.lhr1.onramps.two.device: wg0 is on-ramp vpn's ; one device, one on-ramp"),
    ),
    (
        "unknown pool",
        (("pool: gb, sources", "pool: uk, sources"),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.pool: no pool 'uk' ; there are: gb, six, ten"),
    ),
    (
        "pool of other nodes",
        (
            (
                'ten: {site: lhr, slices: [{slice: "198.51.100.20:9000-9009", node: lhr1}]}',
                "fr: {site: cdg, addresses: 198.51.100.20}",
            ),
            ("pool: gb, sources", "pool: fr, sources"),
        ),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.pool: lhr1 is not among the nodes of pool fr ; name a pool it is in"),
    ),
    (
        "which pool?",
        (("pool: gb, sources", "sources"),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn: names no pool, and lhr1 has these: gb, six, ten ; add `pool: NAME`"),
    ),
    (
        "no source",
        (("sources: 10.64.0.0/24", "sources: []"),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.sources: no source is allowed ; name the clients' "
            "networks, such as 10.1.0.0/24"
        ),
    ),
    (
        "bad source",
        (("sources: 10.64.0.0/24", "sources: clients"),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.sources: 'clients' is no prefix ; write one such as 198.51.100.0/24"),
    ),
    (
        "source is everything",
        (("sources: 10.64.0.0/24", "sources: 0.0.0.0/0"),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.sources: 0.0.0.0/0 is wider than /8 ; name the clients' own networks"),
    ),
    (
        "source overlaps prefix",
        (("sources: 10.64.0.0/24", "sources: 198.51.0.0/16"),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.sources: 198.51.0.0/16 overlaps the fleet's prefix "
            "198.51.100.0/24 ; clients have inner addresses"
        ),
    ),
    (
        "source holds an underlay",
        (("sources: 10.64.0.0/24", "sources: 10.0.0.0/8"),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.sources: 10.0.0.0/8 holds lhr1's underlay 10.0.1.11 ;"
            " clients must not be able to be a node"
        ),
    ),
    (
        "gateway of other family",
        (("gateway4: 10.64.0.1", 'gateway4: "fd00::1"'),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.gateway4: fd00::1 is IPv6 ; write it as `gateway6`"),
    ),
    (
        "gateway in prefix",
        (("gateway4: 10.64.0.1", "gateway4: 198.51.100.1"),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.gateway4: 198.51.100.1 is within the fleet's prefix "
            "198.51.100.0/24 ; use an inner address"
        ),
    ),
    (
        "gateway twice",
        (("gateway4: 10.64.0.1", "gateway4: 10.64.0.1, gateway: 10.64.0.1"),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.gateway: is gateway4 by another name ; keep one of them"),
    ),
    (
        "unknown mapping",
        (("gateway4: 10.64.0.1", "mapping: symmetric"),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.mapping: 'symmetric' is none of these: endpoint-independent,"
            " address-and-port-dependent ; write one of them"
        ),
    ),
    (
        "unknown filtering",
        (("gateway4: 10.64.0.1", "mapping: endpoint-independent, filtering: none"),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.filtering: 'none' is none of these: endpoint-independent,"
            " address-dependent, address-and-port-dependent ; write one of them"
        ),
    ),
    (
        "filtering without mapping",
        (("gateway4: 10.64.0.1", "filtering: address-dependent"),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.filtering: address-dependent filtering wants endpoint-independent"
            " mapping ; add `mapping: endpoint-independent`, or remove it"
        ),
    ),
    (
        "mapping without ports for it",
        (("gateway4: 10.64.0.1", "mapping: endpoint-independent"), ("slice_ports: 2048", "slice_ports: 32")),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.mapping: no slice of pool gb has UDP ports for it ; give it slices of"
            " at least 64 ports and settings.udp_wildcard_fraction more than 0"
        ),
    ),
    (
        "mapping without a fraction",
        (
            ("gateway4: 10.64.0.1", "mapping: endpoint-independent"),
            ("settings: {", "settings: {udp_wildcard_fraction: 0, "),
        ),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.mapping: no slice of pool gb has UDP ports for it ; give it slices of"
            " at least 64 ports and settings.udp_wildcard_fraction more than 0"
        ),
    ),
    (
        "mss too small",
        (("gateway4: 10.64.0.1", "mss: 100"),),
        "11: sites.lhr.nodes.lhr1.onramps.vpn.mss: 100 is out of range ; at least 256",
    ),
    (
        "empty tenant",
        (("gateway4: 10.64.0.1", "tenant: ''"),),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.tenant: is empty or longer than 63 characters ; write a short name"),
    ),
    (
        "on-ramp's slice of another pool",
        (("gateway4: 10.64.0.1", 'slice: "198.51.100.20:9000-9001"'),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.slice: 198.51.100.20:9000-9001 is not of pool gb ; "
            "name a range of the pool's own slices"
        ),
    ),
    (
        "on-ramp's slice of two parts",
        (("gateway4: 10.64.0.1", 'slice: "198.51.100.10:4000-5000"'),),
        (
            "11: sites.lhr.nodes.lhr1.onramps.vpn.slice: 198.51.100.10:4000-5000 lies in no single "
            "slice of pool gb ; stay within one part of 2048 ports"
        ),
    ),
    (
        "on-ramp's slice of another node",
        (
            (
                "pool: gb, sources: 10.64.0.0/24, gateway4: 10.64.0.1",
                'pool: ten, sources: 10.64.0.0/24, slice: "198.51.100.20:9000"',
            ),
            ("node: lhr1}]", "node: lhr2}]"),
        ),
        ("11: sites.lhr.nodes.lhr1.onramps.vpn.slice: 198.51.100.20:9000-9009 is lhr2's ; name a slice of lhr1"),
    ),
)


def changed(change: Change) -> str:
    if isinstance(change, str):
        return change
    text = BASE
    for old, new in change:
        assert text.count(old) >= 1, f"{old!r} is not in the plan"
        text = text.replace(old, new, 1)
    return text


def test_the_plan_that_the_changes_are_made_to_is_good() -> None:
    plan = load_plan(BASE, "plan.yaml")
    assert sorted(plan.pools) == ["gb", "six", "ten"]


@pytest.mark.parametrize(("change", "line"), [row[1:] for row in PLANS], ids=[row[0] for row in PLANS])
def test_bad_plan_gives_one_clear_line(change: Change, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        load_plan(changed(change), "plan.yaml")
    assert str(caught.value) == f"plan.yaml:{line}"
    assert "\n" not in str(caught.value)
    assert caught.value.exit_status == 2
    assert caught.value.remedy


def test_there_are_many_kinds() -> None:
    assert len({row[2] for row in PLANS}) >= 100


ONE = '  - {slice: "198.51.100.20:9000-9009", node: lhr1, epoch: 1, pool: ten}\n'
HEAD = f"{HEADER}\nepoch: 2\nbindings:\n"
REMAKE = "make it again with `softunicast plan apply`"
OTHER = "the bindings are of another plan, or older than this one: `softunicast plan apply`"


def one(**changes: str) -> str:
    """A file of one binding with some values changed; `without` leaves one out."""
    values = {"slice": '"198.51.100.20:9000-9009"', "node": "lhr1", "epoch": "1", "pool": "ten"}
    without = changes.pop("without", None)
    values.update(changes)
    inside = ", ".join(f"{key}: {value}" for key, value in values.items() if key != without)
    return f"{HEAD}  - {{{inside}}}\n"


BINDINGS: tuple[tuple[str, str, str], ...] = (
    ("empty", "", f":1: the file is empty ; {REMAKE}"),
    ("no mapping", "- 1\n", f":1: the file is no mapping of keys to values ; {REMAKE}"),
    ("no epoch", "bindings: []\n", f":1: epoch: missing ; {REMAKE}"),
    ("no bindings", "epoch: 1\n", f":1: bindings: missing ; {REMAKE}"),
    ("unknown key", "epoch: 1\nbindings: []\nowner: me\n", ":3: owner: unknown key ; known keys: epoch, bindings"),
    (
        "epoch is text",
        "epoch: one\nbindings: []\n",
        f":1: epoch: a whole number from 0 to 4294967295 is wanted ; {REMAKE}",
    ),
    (
        "epoch is negative",
        "epoch: -1\nbindings: []\n",
        f":1: epoch: a whole number from 0 to 4294967295 is wanted ; {REMAKE}",
    ),
    (
        "epoch is too large",
        "epoch: 4294967296\nbindings: []\n",
        f":1: epoch: a whole number from 0 to 4294967295 is wanted ; {REMAKE}",
    ),
    ("bindings are a mapping", "epoch: 1\nbindings: {}\n", f":2: bindings: a list is wanted ; {REMAKE}"),
    ("a binding is text", "epoch: 1\nbindings: [x]\n", f":2: bindings[0]: a mapping is wanted ; {REMAKE}"),
    ("binding without node", one(without="node"), f":4: bindings[0].node: missing ; {REMAKE}"),
    (
        "binding with unknown key",
        one(owner="me"),
        ":4: bindings[0].owner: unknown key ; known keys: slice, node, epoch, pool",
    ),
    ("node is a number", one(node="7"), f":4: bindings[0].node: text is wanted ; {REMAKE}"),
    ("pool is a list", one(pool="[ten]"), f":4: bindings[0].pool: text is wanted ; {REMAKE}"),
    ("slice is a number", one(slice="9000"), f":4: bindings[0].slice: text is wanted ; {REMAKE}"),
    (
        "slice is none",
        one(slice="nine"),
        (
            ":4: bindings[0].slice: 'nine' is no slice ; write address:first-last, such as "
            "198.51.100.20:9000-9009 or [2001:db8::1]:1024-65535"
        ),
    ),
    (
        "epoch of a binding is 0",
        one(epoch="0"),
        f":4: bindings[0].epoch: a whole number from 1 to 4294967295 is wanted ; {REMAKE}",
    ),
    (
        "epoch of a binding beyond the file's",
        one(epoch="3"),
        f":4: 198.51.100.20:9000-9009: epoch 3 is beyond the file's 2 ; {REMAKE}",
    ),
    (
        "same slice twice",
        HEAD + ONE + ONE,
        (f":5: 198.51.100.20:9000-9009 of lhr1 overlaps 198.51.100.20:9000-9009 of lhr1 ; {REMAKE}"),
    ),
    (
        "slices overlap",
        HEAD + ONE + ONE.replace("9000-9009", "9009-9010").replace("lhr1", "lhr2"),
        (f":5: 198.51.100.20:9009-9010 of lhr2 overlaps 198.51.100.20:9000-9009 of lhr1 ; {REMAKE}"),
    ),
    (
        "cut off",
        (HEAD + ONE)[:-20],
        (
            ":4: not YAML: expected ',' or '}', but got '<stream end>' ; mend the indentation, quotes "
            "and brackets near that line"
        ),
    ),
    ("unknown pool", one(pool="uk"), f":4: 198.51.100.20:9000-9009: pool 'uk' is not in plan.yaml ; {OTHER}"),
    ("unknown node", one(node="lhr9"), f":4: 198.51.100.20:9000-9009: node 'lhr9' is not in plan.yaml ; {OTHER}"),
    (
        "node of another site",
        one(node="cdg1"),
        f":4: 198.51.100.20:9000-9009: cdg1 is not among the nodes of pool ten ; {OTHER}",
    ),
    (
        "address of no pool",
        one(slice='"198.51.100.77:2048-4095"'),
        f":4: 198.51.100.77:2048-4095: its address is in no pool of plan.yaml ; {OTHER}",
    ),
    (
        "address of another pool",
        one(slice='"198.51.100.10:2048-4095"'),
        f":4: 198.51.100.10:2048-4095: its address is of pool gb, not ten ; {OTHER}",
    ),
    (
        "static slice given elsewhere",
        one(node="lhr2"),
        f":4: 198.51.100.20:9000-9009: plan.yaml gives it to lhr1, not lhr2 ; {OTHER}",
    ),
    (
        "no static slice of the plan",
        one(slice='"198.51.100.20:9000-9008"'),
        f":4: 198.51.100.20:9000-9008: is no slice of pool ten ; {OTHER}",
    ),
    (
        "not a part",
        one(slice='"198.51.100.10:2048-4000"', pool="gb"),
        f":4: 198.51.100.10:2048-4000: is no slice of pool gb ; {OTHER}",
    ),
    (
        "reserved part",
        one(slice='"198.51.100.10:0-2047"', pool="gb"),
        f":4: 198.51.100.10:0-2047: is no slice of pool gb ; {OTHER}",
    ),
    (
        "part of IPv6",
        one(slice='"[2001:db8:0:100::1]:2048-4095"', pool="six"),
        f":4: [2001:db8:0:100::1]:2048-4095: is no slice of pool six ; {OTHER}",
    ),
)


@pytest.mark.parametrize(("text", "line"), [row[1:] for row in BINDINGS], ids=[row[0] for row in BINDINGS])
def test_bad_bindings_give_one_clear_line(text: str, line: str) -> None:
    with pytest.raises(PlanError) as caught:
        check_bindings(load_plan(BASE, "plan.yaml"), read_bindings(text, "b.yaml"))
    assert str(caught.value) == f"b.yaml{line}"
    assert caught.value.exit_status == 2


def test_older_epoch_is_refused() -> None:
    plan = load_plan(BASE, "plan.yaml")
    running = load_bindings(f"{HEADER}\nepoch: 7\nbindings:\n{ONE}", "run.yaml")
    older = read_bindings(f"{HEADER}\nepoch: 6\nbindings:\n{ONE}", "b.yaml")
    with pytest.raises(PlanError) as caught:
        check_bindings(plan, older, running=running)
    assert str(caught.value) == "b.yaml: epoch 6 is older than 7, which runs here ; bring the newest bindings file"


def test_other_content_under_the_same_epoch_is_refused() -> None:
    plan = load_plan(BASE, "plan.yaml")
    running = load_bindings(f"{HEADER}\nepoch: 7\nbindings:\n{ONE}", "run.yaml")
    with pytest.raises(PlanError) as caught:
        check_bindings(plan, load_bindings("epoch: 7\nbindings: []\n", "b.yaml"), running=running, file="b.yaml")
    assert str(caught.value) == (
        "b.yaml: differs from what runs here under the same epoch 7 ;"
        " write it with `softunicast plan apply`, in one place"
    )
    check_bindings(plan, running, running=running)


@pytest.mark.parametrize("verb", ["check", "apply", "diff"])
def test_status_is_2_and_nothing_changes(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, bindings = tmp_path / "plan.yaml", tmp_path / "bindings.yaml"
    good = dump_bindings(allocate(load_plan(BASE, "plan.yaml")))
    bindings.write_text(good)
    for _, change, line in PLANS if verb == "check" else PLANS[::12]:
        plan.write_text(changed(change))
        assert run(["plan", verb, str(plan), "--bindings", str(bindings)]) == 2
        written = capsys.readouterr()
        assert written.out == ""
        assert written.err == f"softunicast: {plan}:{line}\n"
        assert bindings.read_text() == good
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bindings.yaml", "plan.yaml"]


@pytest.mark.parametrize("verb", ["apply", "diff"])
def test_bad_last_bindings_stop_apply(verb: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plan, bindings = tmp_path / "plan.yaml", tmp_path / "bindings.yaml"
    plan.write_text(BASE)
    bindings.write_text("epoch: x\nbindings: []\n")
    assert run(["plan", verb, str(plan), "--bindings", str(bindings)]) == 2
    assert capsys.readouterr().err == (
        f"softunicast: {bindings}:1: epoch: a whole number from 0 to 4294967295 is wanted ; {REMAKE}\n"
    )
    assert bindings.read_text() == "epoch: x\nbindings: []\n"
