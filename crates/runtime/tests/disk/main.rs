//! Disks through their public door, on both drivers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a test fails by panicking"
)]

mod fault;
mod space;
mod tree;
mod volume;
mod volume_file;
mod world;

/// A test that runs on each driver.
macro_rules! on_both_drivers {
    ($(fn $name:ident($world:ident: &World) $body:block)*) => {$(
        mod $name {
            use super::*;

            fn run($world: &World) $body

            #[test]
            fn btrfs() {
                run(&World::new(DiskDriver::Btrfs));
            }

            #[test]
            fn directory() {
                run(&World::new(DiskDriver::Directory));
            }
        }
    )*};
}
use on_both_drivers;
