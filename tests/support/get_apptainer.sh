#!/bin/bash
# Unpack a real Apptainer into FOLDER, from Debian's packages. Nothing of this machine changes:
#   tests/support/get_apptainer.sh FOLDER
#   FURNACE_APPTAINER=FOLDER/bin pytest tests/real_slurm/test_slurm_container.py
# It needs apt on Debian or Ubuntu with this machine's own mirror, and root. Packages of Debian sid run with
# sid's C library, which is unpacked beside them.
set -euo pipefail
folder=$(mkdir -p "$1" && cd "$1" && pwd)
apt=$folder/apt root=$folder/root sid=$folder/sid
mirror=$(apt-get indextargets --format '$(SITE)' 'Created-By: Packages' | grep -m1 '/debian$' || true)
[ -n "$mirror" ] || { echo "no mirror of Debian in the sources of apt"; exit 1; }
own=$(. /etc/os-release && echo "$VERSION_CODENAME")
mkdir -p "$apt"/{etc/sources.list.d,etc/preferences.d,etc/apt.conf.d,state/lists/partial,cache/archives/partial,debs}
key="[signed-by=/usr/share/keyrings/debian-archive-keyring.gpg]"
printf 'deb %s %s %s main\n' "$key" "$mirror" sid "$key" "$mirror" "$own" > "$apt/etc/sources.list"
# a frozen mirror is older than its own limit; its signature still counts
cat > "$apt/apt.conf" <<CONF
Dir::Etc "$apt/etc"; Dir::State "$apt/state"; Dir::Cache "$apt/cache"; Dir::State::status "/var/lib/dpkg/status";
Acquire::Check-Valid-Until "false"; APT::Sandbox::User "root";
CONF
export APT_CONFIG=$apt/apt.conf
apt-get update -qq
(cd "$apt/debs" && apt-get download -qq apptainer/sid libc6/sid libseccomp2/sid libsqlite3-0/sid \
  patchelf/"$own" squashfs-tools/"$own" liblzo2-2/"$own")
for name in libc6 libseccomp2 libsqlite3-0; do dpkg -x "$apt"/debs/"$name"_*.deb "$sid"; done
for name in apptainer patchelf squashfs-tools liblzo2-2; do dpkg -x "$apt"/debs/"$name"_*.deb "$root"; done
lib=usr/lib/$(uname -m)-linux-gnu
for program in usr/bin/apptainer "$lib/apptainer/bin/starter"; do
  "$root/usr/bin/patchelf" --set-interpreter "$(echo "$sid/$lib"/ld-linux-*)" --force-rpath --set-rpath "$sid/$lib" "$root/$program"
done
"$root/usr/bin/patchelf" --set-rpath "$root/$lib:$root/lib/$(uname -m)-linux-gnu" "$root/usr/bin/mksquashfs"
# Both programs look for their settings relative to where they are. Root may lack a capability, so it gets none.
sed -i 's/^root default capabilities = .*/root default capabilities = no/' "$root/etc/apptainer/apptainer.conf"
for prefix in usr usr/lib; do
  mkdir -p "$root/$prefix/var/lib/apptainer/mnt/session" && cp -r "$root/etc" "$root/$prefix/"
done
mkdir -p "$folder/bin"
for program in apptainer mksquashfs; do ln -sf "../root/usr/bin/$program" "$folder/bin/$program"; done
"$folder/bin/apptainer" --version
