//! A network namespace, held by a thread.

use nix::sched::{CloneFlags, unshare};
use nix::unistd::{Uid, gettid};
use std::process::Command;
use std::sync::mpsc;
use tokio::sync::oneshot;

type Job = Box<dyn FnOnce() + Send>;

/// A network namespace that lives as long as this value and the threads that were started in it.
pub struct Place {
    /// The thread whose network namespace it is.
    pub id: i32,
    jobs: mpsc::Sender<Job>,
}

/// Puts the calling thread, and what it starts, into a new network namespace with a working loopback.
pub fn enter_new_namespace() {
    assert!(
        Uid::effective().is_root(),
        "these tests make network namespaces: run them as root"
    );
    unshare(CloneFlags::CLONE_NEWNET).expect("making a network namespace");
    shell("ip link set lo up");
}

/// Runs a shell script in the namespace of the calling thread.
pub fn shell(script: &str) {
    let status = Command::new("sh")
        .args(["-ec", script])
        .status()
        .expect("starting sh");
    assert!(status.success(), "failed: {script}");
}

impl Place {
    pub fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (started, start) = mpsc::channel();
        std::thread::spawn(move || {
            enter_new_namespace();
            started.send(gettid().as_raw()).expect("the test waits");
            // Every job has a thread of its own, which inherits the namespace.
            for job in queue {
                std::thread::spawn(job);
            }
        });
        Self {
            id: start.recv().expect("the namespace is made"),
            jobs,
        }
    }

    /// Runs `job` in the namespace and gives its result.
    pub async fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = oneshot::channel();
        self.start(move || drop(done.send(job())));
        result.await.expect("the job panicked")
    }

    /// Runs `job` in the namespace, aside.
    pub fn start(&self, job: impl FnOnce() + Send + 'static) {
        self.jobs
            .send(Box::new(job))
            .expect("the namespace's thread lives");
    }

    pub async fn shell(&self, script: impl Into<String>) {
        let script = script.into();
        self.run(move || shell(&script)).await;
    }
}
