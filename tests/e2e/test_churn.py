# SPDX-License-Identifier: Apache-2.0
"""2,000 sockets and 2,000 forwarded connections churn for a minute on a 64-port slice, to one destination.

On both CPUs. No error but EADDRNOTAVAIL (to forwarded clients: ECONNREFUSED), no byte of one in another's stream, no
claim leaked, and nothing outside the slice at the router.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.support.fleet_lab import WEB_PORT, fleet_lab
from tests.support.wait import wait_until

CHURNER = Path(__file__).parent.parent / "support" / "churner.py"
SECONDS = 60
WHO = {"sockets": ("lhr1", 2000), "veth": ("c1", 1000), "tun": ("t1", 1000)}


@pytest.mark.timeout(240)
def test_churn() -> None:
    timers = {"tcp_linger_s": 1, "sock_linger_s": 1, "tcp_transitory_s": 5}
    with fleet_lab("churn", pool="sixtyfour", timers=timers) as lab:
        destination = lab.fresh()
        with lab.capture() as capture:
            children = {}
            for name, (where, clients) in WHO.items():
                command = [sys.executable, str(CHURNER), destination, str(WEB_PORT), str(clients), str(SECONDS), name]
                if where == "lhr1":
                    command = ["softunicast", "run", "--pool", "sixtyfour", "--", *command]
                children[name] = lab.node(where).popen(command, stdout=-1, stderr=-1, text=True)
            results = {}
            for name, child in children.items():
                out, problems = child.communicate(timeout=SECONDS + 60)
                assert child.returncode == 0, problems
                results[name] = json.loads(out)
        print(json.dumps(results))
        for name, result in results.items():
            assert result["wrong"] == 0, results
            expected = "EADDRNOTAVAIL" if name == "sockets" else "ECONNREFUSED"
            assert set(result["errors"]) <= {expected}, results
            # Everybody is served, nobody starves the others.
            assert result["done"] > 100, results
        report = capture.report()
        assert report.ok, report.problems()
        # What is left lingers for its timer and TIME_WAIT, and is then gone: the sweep sees to it without traffic.
        wait_until(lambda: not lab.claims("lhr1"), 75, "no claim is left")
