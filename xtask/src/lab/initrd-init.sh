#!/bin/busybox sh
# First program of the lab: loads what the root disk needs, and goes over to it.
b=/bin/busybox
$b mount -t devtmpfs dev /dev
while read -r module; do
    $b insmod "/modules/$module"
done </modules/order
# Disks come up some time after their driver does.
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 200 ]; do
    $b usleep 50000
    tries=$((tries + 1))
done
if $b mount -t ext4 -o noatime /dev/vda /root; then
    $b mount --move /dev /root/dev
    exec $b switch_root /root /sbin/lab-init
fi
echo "lab: the root disk cannot be mounted"
$b poweroff -f
