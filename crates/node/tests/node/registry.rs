//! A registry on loopback with one small image in it: a shell, a few programs of the host, and package managers that only
//! write down what they were asked for.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// What the image has of the host, with the libraries that they need.
const PROGRAMS: &[&str] = &[
    "bash", "cat", "sleep", "mkdir", "ls", "touch", "env", "seq", "head",
];
/// Writes down its own name and arguments.
const TELLER: &str =
    "#!/bin/bash\necho \"${0##*/} $*\" | /bin/cat >> /told\necho \"${0##*/} works\"\n";
const TELLERS: &[&str] = &["apt-get", "python3", "npm", "git"];

/// A registry that serves; it ends with this.
pub(crate) struct Registry {
    process: Child,
    address: String,
    _folder: tempfile::TempDir,
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It has nothing to lose.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

impl Registry {
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layout = image(folder.path());
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        drop(listener);
        let config = folder.path().join("registry.yml");
        let store = folder.path().join("store");
        let text = format!(
            "version: 0.1\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: \"{address}\"}}\n",
            store.display()
        );
        std::fs::write(&config, text).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&config)
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed");
        let registry = Self {
            process,
            address,
            _folder: folder,
        };
        let deadline = Instant::now() + Duration::from_secs(30);
        while std::net::TcpStream::connect(&registry.address).is_err() {
            assert!(Instant::now() < deadline, "the registry does not listen");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        run(Command::new("skopeo")
            .args(["copy", "--quiet", "--dest-tls-verify=false"])
            .arg(format!("oci:{}:latest", layout.display()))
            .arg(format!("docker://{}", registry.reference())));
        registry
    }

    pub(crate) fn reference(&self) -> String {
        format!("{}/team/small:1", self.address)
    }

    pub(crate) fn missing(&self) -> String {
        format!("{}/team/missing:1", self.address)
    }
}

fn run(command: &mut Command) -> String {
    let output = command.output().expect("skopeo and umoci are installed");
    assert!(output.status.success(), "{command:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Makes the image in a folder, in the layout of OCI.
fn image(folder: &Path) -> PathBuf {
    let (layout, bundle) = (folder.join("layout"), folder.join("bundle"));
    let name = format!("{}:latest", layout.display());
    let umoci = |arguments: &[&str]| run(Command::new("umoci").args(arguments));
    umoci(&["init", "--layout", &layout.to_string_lossy()]);
    umoci(&["new", "--image", &name]);
    umoci(&["unpack", "--image", &name, &bundle.to_string_lossy()]);
    let root = bundle.join("rootfs");
    fill(&root);
    // The same layer each time: the host's store of blobs keeps it once.
    run(Command::new("find").arg(&root).args([
        "-exec",
        "touch",
        "-h",
        "-d",
        "@1700000000",
        "{}",
        "+",
    ]));
    umoci(&["repack", "--image", &name, &bundle.to_string_lossy()]);
    umoci(&[
        "config",
        "--image",
        &name,
        "--config.env",
        "FROM_IMAGE=yes",
        "--config.env",
        "BOTH=image",
        "--config.workingdir",
        "/srv/work",
        "--config.cmd",
        "bash",
        "--config.user",
        "nobody",
    ]);
    layout
}

fn fill(root: &Path) {
    for folder in ["bin", "etc", "tmp", "root"] {
        std::fs::create_dir_all(root.join(folder)).unwrap();
    }
    std::fs::write(root.join("etc/passwd"), "root:x:0:0:root:/root:/bin/bash\n").unwrap();
    for program in PROGRAMS {
        let found = run(Command::new("bash").args(["-c", &format!("command -v {program}")]));
        let found = match found.trim() {
            // What bash has itself, the host has as a program too.
            name if name.starts_with('/') => PathBuf::from(name),
            name => Path::new("/bin").join(name),
        };
        std::fs::copy(&found, root.join("bin").join(program)).unwrap();
        for line in run(Command::new("ldd").arg(&found)).lines() {
            let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) else {
                continue;
            };
            let copy = root.join(library.trim_start_matches('/'));
            std::fs::create_dir_all(copy.parent().unwrap()).unwrap();
            std::fs::copy(library, copy).unwrap();
        }
    }
    for name in TELLERS {
        let path = root.join("bin").join(name);
        std::fs::write(&path, TELLER).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
    }
}
