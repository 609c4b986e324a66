#!/bin/bash
# The lab's PID 1: mounts what Linux programs expect, loads what Firecracker and mvm need, runs the one job that lies on the
# job disk, says how it ended on the second serial port, and turns the machine off.
#
# Disks: vda root (changes are thrown away), vdb job (read-only), vdc scratch (empty), vdd what the job leaves in /out, as tar.
export PATH=/job/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/root TERM=linux LANG=C.UTF-8 TMPDIR=/scratch/tmp MVM_LAB=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t cgroup2 cgroup /sys/fs/cgroup
mkdir -p /dev/pts /dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 pts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
ln -sfn /proc/self/fd /dev/fd
# ssh runs its proxy command with it.
[ -e /bin/sh ] || ln -s bash /bin/sh
for controller in cpu memory io pids cpuset; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
modprobe -a kvm_amd tun bridge br_netfilter nf_tables loop btrfs
# What mvm does has to hold with bridged frames passing the forward chain, so here they do.
echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables
ip link set lo up
echo lab >/proc/sys/kernel/hostname
mount -t ext4 -o ro /dev/vdb /job
mount -t ext4 -o noatime,noinit_itable /dev/vdc /scratch
mkdir -p "$TMPDIR" /out
cd /scratch || exit
read -r uptime _ </proc/uptime
echo "up $uptime" >/dev/ttyS1
setsid -cw bash /job/job <>/dev/ttyS0 >&0 2>&0
code=$?
cd /
tar -cf /dev/vdd -C /out .
sync
echo "exit $code" >/dev/ttyS1
busybox poweroff -f
# The power goes off asynchronously, and PID 1 must not end before.
exec sleep infinity
