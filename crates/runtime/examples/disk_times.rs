//! How long snapshots, checkpoints and disks from them take, by how much was written before. Needs root:
//! `disk_times FOLDER [btrfs|directory]`; the pool is made in FOLDER and removed again. Takes 3 GB.

use instavm_runtime::disk::{DiskDriver, DiskError, DiskOptions, DiskPool};
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

const MIB: u64 = 1 << 20;
const ROUNDS: usize = 20;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments
        .next()
        .ok_or("disk_times FOLDER [btrfs|directory]")?;
    let driver = match arguments.next().as_deref() {
        Some("directory") => DiskDriver::Directory,
        _ => DiskDriver::Btrfs,
    };
    let data_dir = Path::new(&folder).join("disk-times");
    std::fs::create_dir_all(&data_dir)?;
    let measured = measure(&data_dir, driver);
    DiskPool::destroy(&data_dir)?;
    std::fs::remove_dir_all(&data_dir)?;
    Ok(measured?)
}

fn measure(data_dir: &Path, driver: DiskDriver) -> Result<(), DiskError> {
    let options = DiskOptions {
        size: Some(3072 * MIB),
        driver,
    };
    let pool = DiskPool::open(data_dir, &options)?;
    let image = pool.ensure_image("base", |root| {
        for number in 0..5000 {
            let folder = root.join(format!("{:02}", number % 50));
            std::fs::create_dir_all(&folder)?;
            std::fs::write(folder.join(format!("{number}")), vec![1; 8192])?;
        }
        Ok(())
    })?;
    let disk = pool.create("m1", &image, 2048 * MIB)?;
    let volume = pool.create_volume("vol_a", 2048 * MIB)?;
    for megabytes in [1, 100, 1000] {
        // One at a time, so that the pool stays small.
        write(&disk.join("data"), megabytes)?;
        report(&pool, "snapshot", megabytes, |n| {
            pool.save("m1", &format!("snap_{n}")).map(drop)
        })?;
        report(&pool, "disk from a snapshot", megabytes, |n| {
            let from = pool.snapshot_path("snap_0");
            pool.create(&format!("d{n}"), &from, 64 * MIB).map(drop)
        })?;
        write_small(&disk.join("small"))?;
        for n in 0..ROUNDS {
            pool.delete(&format!("d{n}"))?;
            pool.delete_snapshot(&format!("snap_{n}"))?;
        }
        clear(&pool, &disk.join("data"))?;
        write(&volume.join("data"), megabytes)?;
        report(&pool, "checkpoint", megabytes, |n| {
            pool.checkpoint("vol_a", &format!("ckpt_{n}")).map(drop)
        })?;
        for n in 0..ROUNDS {
            pool.delete_checkpoint("vol_a", &format!("ckpt_{n}"))?;
        }
        clear(&pool, &volume.join("data"))?;
    }
    Ok(())
}

fn write(path: &Path, megabytes: u64) -> Result<(), DiskError> {
    let part = vec![2_u8; 1 << 20];
    let write = || {
        let mut file = std::fs::File::create(path)?;
        (0..megabytes).try_for_each(|_| file.write_all(&part))
    };
    write().map_err(failed("write", path))
}

fn write_small(path: &Path) -> Result<(), DiskError> {
    std::fs::write(path, "small").map_err(failed("write", path))
}

fn clear(pool: &DiskPool, path: &Path) -> Result<(), DiskError> {
    std::fs::remove_file(path).map_err(failed("remove", path))?;
    pool.flush("m1")
}

fn failed(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::Disk {
        action,
        path,
        source,
    }
}

fn report(
    pool: &DiskPool,
    what: &str,
    megabytes: u64,
    step: impl Fn(usize) -> Result<(), DiskError>,
) -> Result<(), DiskError> {
    pool.flush("m1")?;
    let mut times = Vec::new();
    for number in 0..ROUNDS {
        let begin = Instant::now();
        step(number)?;
        times.push(begin.elapsed());
    }
    times.sort();
    let at = |share: usize| times.get(ROUNDS * share / 100).copied();
    let ms = |time: Option<Duration>| time.unwrap_or_default().as_secs_f64() * 1000.0;
    let mut out = std::io::stdout();
    let line = format!(
        "{what:22} {megabytes:5} MB  p50 {:6.2} ms  p90 {:6.2} ms  max {:6.2} ms",
        ms(at(50)),
        ms(at(90)),
        ms(times.last().copied())
    );
    // Nobody reads on when this fails.
    let _ = writeln!(out, "{line}");
    Ok(())
}
