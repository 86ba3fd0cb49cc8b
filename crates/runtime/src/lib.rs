//! What makes a VM: drivers, images, disks, cgroups.
#![forbid(unsafe_code)]
