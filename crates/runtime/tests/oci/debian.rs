//! The registry that Debian packages, with and without TLS, and images that its tools make.

use crate::image::{GZIP, Image, Layer, Tar, digest};
use crate::world::{World, text};
use std::path::Path;
use std::process::{Child, Command, Stdio};

/// `docker-registry`, on a port of its own.
struct Registry {
    host: String,
    scheme: &'static str,
    client: reqwest::Client,
    process: Child,
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A private authority, and a certificate of it for this host.
struct Authority {
    authority: std::path::PathBuf,
    certificate: std::path::PathBuf,
    key: std::path::PathBuf,
}

impl Authority {
    fn new(folder: &Path) -> Self {
        let script = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=test-authority \
             -addext basicConstraints=critical,CA:TRUE -keyout ca.key -out ca.pem && \
             openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=127.0.0.1 -keyout key.pem -out csr && \
             printf 'subjectAltName=IP:127.0.0.1\\nbasicConstraints=CA:FALSE\\n' >ext && \
             openssl x509 -req -in csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile ext -out cert.pem";
        run(Command::new("sh").args(["-c", script]).current_dir(folder));
        Self {
            authority: folder.join("ca.pem"),
            certificate: folder.join("cert.pem"),
            key: folder.join("key.pem"),
        }
    }
}

fn run(command: &mut Command) {
    let done = command.output().unwrap();
    assert!(
        done.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

impl Registry {
    async fn start(folder: &Path, tls: Option<&Authority>) -> Self {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        drop(listener);
        let mut http = serde_json::json!({"addr": host});
        if let Some(tls) = tls {
            http["tls"] = serde_json::json!({"certificate": tls.certificate, "key": tls.key});
        }
        let data = folder.join("registry");
        let configuration = serde_json::json!({
            "version": 0.1,
            "storage": {"filesystem": {"rootdirectory": data}},
            "http": http,
            "log": {"level": "warn"},
        });
        // JSON is YAML.
        let file = folder.join("registry.yml");
        std::fs::write(&file, configuration.to_string()).unwrap();
        let process = Command::new("docker-registry")
            .arg("serve")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("docker-registry is installed by scripts/setup");
        let client = reqwest::Client::builder()
            .no_proxy()
            .tls_danger_accept_invalid_certs(true)
            .build()
            .unwrap();
        let scheme = if tls.is_some() { "https" } else { "http" };
        let registry = Self {
            host,
            scheme,
            client,
            process,
        };
        registry.wait().await;
        registry
    }

    /// Returns when it answers.
    async fn wait(&self) {
        let until = std::time::Instant::now() + std::time::Duration::from_secs(20);
        let url = format!("{}://{}/v2/", self.scheme, self.host);
        while self.client.get(&url).send().await.is_err() {
            assert!(
                std::time::Instant::now() < until,
                "the registry does not start"
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }

    async fn push(&self, name: &str, image: &Image) -> String {
        let base = format!("{}://{}/v2/{name}", self.scheme, self.host);
        let blobs = image.layers.iter().map(|layer| &layer.blob);
        for blob in blobs.chain([&image.config]) {
            let url = format!("{base}/blobs/uploads/");
            let begun = self.client.post(url).send().await.unwrap();
            let place = begun.headers()["location"].to_str().unwrap().to_owned();
            let mark = if place.contains('?') { '&' } else { '?' };
            let url = format!("{place}{mark}digest={}", digest(blob));
            let done = self
                .client
                .put(url)
                .body(blob.clone())
                .send()
                .await
                .unwrap();
            assert_eq!(done.status(), 201);
        }
        let done = self
            .client
            .put(format!("{base}/manifests/v1"))
            .header("content-type", image.kind)
            .body(image.manifest.clone())
            .send()
            .await
            .unwrap();
        assert_eq!(done.status(), 201, "{}", done.text().await.unwrap());
        format!("{}/{name}:v1", self.host)
    }
}

fn sample() -> Image {
    let first = Tar::new()
        .folder("srv/")
        .file("srv/a", "one")
        .file("srv/b", "two");
    let second = Tar::new().file("srv/.wh.a", "").file("srv/c", "three");
    Image::new(&[Layer::of(&first, GZIP), Layer::of(&second, GZIP)])
}

#[tokio::test]
async fn the_packaged_registry_serves_images() {
    let world = World::new();
    let registry = Registry::start(world.path(), None).await;
    let reference = registry.push("team/sample", &sample()).await;
    let root = world.ensure(&reference).await.unwrap().root;
    assert_eq!(crate::world::names(&root.join("srv")), ["b", "c"]);
    let error = world
        .ensure(&format!("{}/team/other:v1", registry.host))
        .await
        .unwrap_err();
    assert!(
        error
            .to_string()
            .contains("does not have the image team/other:v1"),
        "{error}"
    );
}

#[tokio::test]
async fn a_private_authority_is_trusted_when_it_is_configured() {
    let world = World::new();
    let authority = Authority::new(world.path());
    let registry = Registry::start(world.path(), Some(&authority)).await;
    let reference = registry.push("sample", &sample()).await;
    let error = world.ensure(&reference).await.unwrap_err();
    assert!(
        error.to_string().to_lowercase().contains("certificate"),
        "{error}"
    );
    let file = authority.authority.clone();
    let store = world.other_store(|config| config.extra_ca = vec![file]);
    let image = store.ensure(&world.pool, &reference, |_| ()).await.unwrap();
    assert_eq!(text(&image.root, "srv/c"), "three");
}

#[tokio::test]
async fn images_of_umoci_pushed_by_skopeo_are_what_umoci_unpacks() {
    let world = World::new();
    let registry = Registry::start(world.path(), None).await;
    let script = format!(
        "umoci init --layout l && umoci new --image l:x && umoci unpack --image l:x b && cd b/rootfs && \
         mkdir -p etc usr/bin var && echo root:x:0:0 >etc/passwd && printf x >usr/bin/tool && chmod 4755 usr/bin/tool && \
         ln -s usr/bin bin && ln usr/bin/tool usr/bin/same && chown 7:8 var && cd ../.. && \
         umoci repack --image l:x b && umoci unpack --image l:x c && rm c/rootfs/etc/passwd && \
         echo new >c/rootfs/etc/group && umoci repack --image l:x c && \
         umoci config --image l:x --config.env A=b --config.workingdir /var --config.cmd tool && \
         skopeo copy --quiet --insecure-policy --dest-tls-verify=false oci:l:x docker://{}/made:v1",
        registry.host
    );
    run(Command::new("sh")
        .args(["-ec", &script])
        .current_dir(world.path()));
    let image = world
        .ensure(&format!("{}/made:v1", registry.host))
        .await
        .unwrap();
    let listing = |folder: &Path, but: &str| {
        let script = format!("find . -mindepth 1 {but} -printf '%p %y %m %U %G %l %T@\\n' | sort");
        let done = Command::new("sh")
            .args(["-c", &script])
            .current_dir(folder)
            .output()
            .unwrap();
        String::from_utf8(done.stdout).unwrap()
    };
    run(Command::new("sh")
        .args(["-ec", "umoci unpack --image l:x theirs"])
        .current_dir(world.path()));
    let but = "! -path './dev*' ! -path ./proc ! -path ./sys ! -path ./run ! -path ./tmp ! -path ./root ! -path ./app ! -path ./workspace";
    let theirs = listing(&world.path().join("theirs/rootfs"), but);
    assert!(theirs.contains("./usr/bin/tool f 4755 0 0 "), "{theirs}");
    assert!(!theirs.contains("passwd"), "{theirs}");
    assert_eq!(listing(&image.root, but), theirs);
    let links = std::os::unix::fs::MetadataExt::nlink;
    assert_eq!(
        links(&std::fs::metadata(image.root.join("usr/bin/same")).unwrap()),
        2
    );
    assert_eq!(image.config.workdir.as_deref(), Some("/var"));
    assert!(image.config.env.contains(&("A".into(), "b".into())));
    assert_eq!(image.config.command, ["tool"]);
}
