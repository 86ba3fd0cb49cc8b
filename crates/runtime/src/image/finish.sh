#!/bin/sh
# Makes a root file system fit for VMs. $1 is its directory; nothing outside of it is touched.
set -eu
root=$1
umask 022

# Names: the VM gets its own at start.
echo localhost > "$root/etc/hostname"
printf '127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n' > "$root/etc/hosts"
: > "$root/etc/resolv.conf"
: > "$root/etc/machine-id"
chmod 644 "$root/etc/hostname" "$root/etc/hosts" "$root/etc/resolv.conf" "$root/etc/machine-id"
rm -f "$root/var/lib/dbus/machine-id" "$root"/etc/ssh/ssh_host_*

# A user besides root.
if ! grep -q '^appuser:' "$root/etc/passwd"; then
    echo 'appuser:x:1000:1000:,,,:/home/appuser:/bin/bash' >> "$root/etc/passwd"
    echo 'appuser:x:1000:' >> "$root/etc/group"
    echo 'appuser:!:19700:0:99999:7:::' >> "$root/etc/shadow"
    echo 'appuser:!::' >> "$root/etc/gshadow"
fi
mkdir -p "$root/home/appuser" "$root/root"
for file in .bashrc .profile .bash_logout; do
    if [ -f "$root/etc/skel/$file" ]; then
        cp "$root/etc/skel/$file" "$root/home/appuser/$file"
    fi
done
chown -R 1000:1000 "$root/home/appuser"
chmod 755 "$root/home/appuser"
chmod 700 "$root/root"
mkdir -p "$root/etc/sudoers.d"
echo 'appuser ALL=(ALL:ALL) NOPASSWD:ALL' > "$root/etc/sudoers.d/appuser"
chmod 750 "$root/etc/sudoers.d"
chmod 440 "$root/etc/sudoers.d/appuser"

# Where executions work.
mkdir -p "$root/app" "$root/workspace"
chmod 777 "$root/app" "$root/workspace"

# UTF-8 everywhere, without translations.
mkdir -p "$root/etc/default"
echo 'LANG=C.UTF-8' > "$root/etc/default/locale"
echo 'LANG=C.UTF-8' > "$root/etc/environment"

# pip installs as root into the machine: that is what a VM is for.
printf '[global]\nroot-user-action = ignore\ndisable-pip-version-check = true\n' > "$root/etc/pip.conf"

# No service starts by being installed: a VM has no init system.
mkdir -p "$root/usr/sbin"
printf '#!/bin/sh\nexit 101\n' > "$root/usr/sbin/policy-rc.d"
chmod 755 "$root/usr/sbin/policy-rc.d"

# The settings of apt during the build go; the list of sources gets its usual name.
rm -f "$root/etc/apt/apt.conf.d/99mmdebstrap"
for list in "$root"/etc/apt/sources.list.d/0000*.list; do
    if [ -f "$list" ]; then
        mv "$list" "$root/etc/apt/sources.list"
    fi
done
find "$root/var/cache/apt" "$root/var/lib/apt/lists" -type f -delete
find "$root/var/log" -type f -exec truncate -s 0 {} +
for directory in tmp var/tmp var/cache/debconf; do
    mkdir -p "$root/$directory"
    find "$root/$directory" -xdev -mindepth 1 -delete
done
mkdir -p "$root/run/lock"
chmod 1777 "$root/tmp" "$root/var/tmp" "$root/run/lock"
