#!/usr/bin/env bash
# SPDX-License-Identifier: Apache-2.0
# Install what softunicast needs to be built, tested and shown: Debian packages (when root), a virtual
# environment in .venv with the locked Python packages, the BPF objects and the proxy's extension module. Says what it does; does only
# what is missing; may be run again at any time.
set -euo pipefail
cd "$(dirname "$0")/.."

packages=(
  clang llvm libbpf1 libbpf-dev linux-libc-dev bpftool make gcc libc6-dev        # the data plane, and C helpers of tests
  iproute2 nftables iptables ethtool procps kmod                          # what the agent and the lab set up
  python3-venv
  python3-dev                                                             # Python.h, for native/: the relay of the proxy
  curl iputils-ping bind9-dnsutils dnsmasq-base iperf3 socat tcpdump conntrack # real clients and servers
  dropbear-bin openssh-client mtr-tiny traceroute git wget
  coturn                                                                  # a STUN server and turnutils_natdiscovery: what NAT is this?
  wireguard-go wireguard-tools systemd-container busybox-static          # clients behind on-ramps: a tunnel, a container
  nginx-light haproxy nodejs golang-go podman                             # programs that know nothing of slices, and containers of them
  bird2 frr exabgp mptcpize util-linux
  haproxy dante-server                                                    # what the proxy is measured beside
  chromium-headless-shell                                                 # a browser through the proxy: Chromium's smallest package (64 MB, 280 MB installed)
)

say() { printf 'setup: %s\n' "$*"; }

missing=()
for package in "${packages[@]}"; do
  status=$(dpkg-query -W -f='${db:Status-Status}' "$package" 2>/dev/null || true)
  [ "$status" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -gt 0 ]; then
  if [ "$(id -u)" -ne 0 ]; then
    say "missing Debian packages: ${missing[*]}"
    say "install them as root: apt-get install ${missing[*]}"
    exit 1
  fi
  say "apt-get install ${missing[*]}"
  export DEBIAN_FRONTEND=noninteractive
  # Daemons of these packages are for the lab's namespaces; none is to start on this machine.
  policy=/usr/sbin/policy-rc.d
  if [ ! -e "$policy" ]; then
    printf '#!/bin/sh\nexit 101\n' >"$policy"
    chmod +x "$policy"
    trap 'rm -f "$policy"' EXIT
  fi
  apt-get update -qq
  apt-get install -y -qq --no-install-recommends "${missing[@]}" >/tmp/softunicast-apt.log 2>&1 || {
    tail -20 /tmp/softunicast-apt.log >&2
    say "apt-get failed; the whole log is /tmp/softunicast-apt.log"
    exit 1
  }
  # Nor when this machine starts again; what was installed before is left as it was.
  if command -v systemctl >/dev/null; then
    for service in bird2:bird frr:frr exabgp:exabgp coturn:coturn nginx-light:nginx haproxy:haproxy \
      podman:podman.socket podman:podman-restart podman:podman-auto-update.timer; do
      case " ${missing[*]} " in *" ${service%:*} "*) systemctl disable --quiet "${service#*:}" 2>/dev/null || true ;; esac
    done
  fi
else
  say "Debian packages: nothing missing"
fi

say "BPF objects ($(clang --version | sed -n 's/.*clang version/clang/p'))"
make --no-print-directory -C bpf

python=${PYTHON:-python3}
"$python" - <<'PY' || { say "Python 3.11 or newer is needed (found: $("$python" -V))"; exit 1; }
import sys
sys.exit(sys.version_info < (3, 11))
PY
if [ ! -x .venv/bin/python ]; then
  say "virtual environment .venv ($("$python" -V))"
  "$python" -m venv .venv
fi
say "extension module of the proxy ($(${CC:-cc} -dumpfullversion -dumpversion 2>/dev/null | sed 's/^/cc /'))"
make --no-print-directory -C native PYTHON="$PWD/.venv/bin/python"
wanted=$(cat requirements.lock pyproject.toml hatch_build.py | sha256sum | cut -d' ' -f1)
if [ "$(cat .venv/softunicast.sha256 2>/dev/null || true)" != "$wanted" ]; then
  say "Python packages of requirements.lock, softunicast itself in place"
  # Quiet about configuration of pip that is not ours, loud about errors.
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements.lock 2> >(grep -v '^WARNING' >&2)
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable . 2> >(grep -v '^WARNING' >&2)
  printf '%s\n' "$wanted" >.venv/softunicast.sha256
else
  say "Python packages: as locked"
fi

say "done: .venv/bin/softunicast --help"
