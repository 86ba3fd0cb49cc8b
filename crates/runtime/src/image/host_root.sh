#!/bin/sh
# Makes everything of a root file system but /usr, for an image of this host. $1 is the directory to make it in.
# Of /etc only what is named here is copied: settings of the distribution, no accounts, keys, hosts or passwords.
set -eu
root=$1
umask 022
mkdir -p "$root"
cd "$root"

for link in bin sbin lib lib32 lib64 libx32; do
    if [ -L "/$link" ]; then
        ln -s "$(readlink "/$link" | sed 's,^/,,')" "$link"
    fi
done
mkdir -p app boot dev etc home media mnt opt proc root run srv sys tmp workspace \
    etc/apt/apt.conf.d etc/apt/sources.list.d etc/apt/trusted.gpg.d etc/apt/keyrings etc/apt/preferences.d \
    etc/sudoers.d etc/default etc/profile.d \
    usr/local/bin usr/local/etc usr/local/games usr/local/include usr/local/lib usr/local/sbin usr/local/share usr/local/src \
    var/backups var/cache/apt/archives/partial var/lib/apt/lists/partial var/lib/dpkg var/lib/misc var/local var/log/apt \
    var/mail var/opt var/spool var/tmp
ln -s /run var/run
ln -s /run/lock var/lock

# Settings of the distribution.
for item in adduser.conf alternatives bash.bashrc bash_completion.d ca-certificates ca-certificates.conf \
    debconf.conf debian_version deluser.conf dpkg fuse.conf host.conf inputrc issue ld.so.cache ld.so.conf ld.so.conf.d \
    libaudit.conf login.defs logrotate.d lsb-release magic magic.mime mime.types nanorc networks os-release pam.conf \
    pam.d perl profile protocols rpc security services shells skel ssl/certs ssl/openssl.cnf terminfo ucf.conf vim \
    wgetrc xattr.conf; do
    if [ -e "/etc/$item" ] || [ -L "/etc/$item" ]; then
        mkdir -p "etc/$(dirname "$item")"
        cp -a "/etc/$item" "etc/$item"
    fi
done
for item in /etc/python3*; do
    if [ -d "$item" ]; then
        cp -a "$item" etc/
    fi
done
ln -sf /usr/share/zoneinfo/Etc/UTC etc/localtime
echo Etc/UTC > etc/timezone
: > etc/fstab
printf 'passwd: files\ngroup: files\nshadow: files\ngshadow: files\nhosts: files myhostname dns\nnetworks: files\nprotocols: files\nservices: files\nethers: files\nrpc: files\n' > etc/nsswitch.conf

# Accounts of the system, without passwords; root without one too.
awk -F: '($3 < 1000 || $3 == 65534) && NF == 7' /etc/passwd > etc/passwd
awk -F: '($3 < 1000 || $3 == 65534) && NF == 4 { print $1 ":x:" $3 ":" }' /etc/group > etc/group
awk -F: '{ print $1 ":*:19700:0:99999:7:::" }' etc/passwd > etc/shadow
awk -F: '{ print $1 ":*::" }' etc/group > etc/gshadow
chmod 640 etc/shadow etc/gshadow
if grep -q '^shadow:' etc/group; then
    chown "0:$(awk -F: '$1 == "shadow" { print $3 }' etc/group)" etc/shadow etc/gshadow
fi
printf 'Defaults env_reset\nDefaults secure_path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"\nroot ALL=(ALL:ALL) ALL\n%%sudo ALL=(ALL:ALL) ALL\n@includedir /etc/sudoers.d\n' > etc/sudoers
chmod 440 etc/sudoers

# apt goes on from where the host's is. Sources that carry a password or lie on this host stay here.
for item in sources.list sources.list.d trusted.gpg trusted.gpg.d keyrings preferences preferences.d; do
    if [ -e "/etc/apt/$item" ]; then
        cp -a "/etc/apt/$item" etc/apt/
    fi
done
for list in etc/apt/sources.list etc/apt/sources.list.d/*; do
    if [ -f "$list" ] && grep -Eq '://[^/ ]*@|file:|copy:|cdrom:' "$list"; then
        rm "$list"
    fi
done
for item in alternatives arch available diversions info status statoverride triggers; do
    if [ -e "/var/lib/dpkg/$item" ]; then
        cp -a "/var/lib/dpkg/$item" var/lib/dpkg/
    fi
done
mkdir -p var/lib/dpkg/updates
if [ -e /var/lib/apt/extended_states ]; then
    cp -a /var/lib/apt/extended_states var/lib/apt/
fi

# The names that scripts use.
[ -e /usr/bin/python ] || ln -s /usr/bin/python3 usr/local/bin/python
[ -e /usr/bin/pip ] || ln -s /usr/bin/pip3 usr/local/bin/pip
