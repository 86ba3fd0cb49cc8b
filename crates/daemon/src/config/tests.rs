use super::*;
use std::io::Write;

fn environment(pairs: &[(&str, &str)]) -> std::vec::IntoIter<(OsString, OsString)> {
    pairs
        .iter()
        .map(|(name, value)| (OsString::from(name), OsString::from(value)))
        .collect::<Vec<_>>()
        .into_iter()
}

fn file(text: &str) -> (tempfile::NamedTempFile, Overrides) {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    let overrides = Overrides {
        config: Some(file.path().to_owned()),
        data_dir: None,
    };
    (file, overrides)
}

fn texts(faults: &Faults) -> Vec<String> {
    faults.iter().map(ToString::to_string).collect()
}

#[test]
fn every_default_of_the_table_is_a_value() {
    let (_file, overrides) = file("");
    let (config, _) = load_from(&overrides, None, environment(&[])).unwrap();
    assert_eq!(config.listen.0.to_string(), "127.0.0.1:8080");
    assert_eq!(config.data_dir, PathBuf::from("/var/lib/instavm"));
    assert_eq!(config.pool_size, 8);
    assert_eq!(config.runtime_extra_ca, None);
    assert!(config.network_denied_ranges.is_empty());
}

#[test]
fn no_two_keys_share_a_path_or_an_environment_name() {
    let mut names: Vec<String> = KEYS.iter().map(|key| environment_name(key.path)).collect();
    names.sort();
    let count = names.len();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn the_later_source_wins() {
    let (_file, mut overrides) = file("listen = '127.0.0.1:1'\n[pool]\nsize = 1\n[vm]\npids = 100");
    overrides.data_dir = Some(PathBuf::from("/data/flag"));
    let env = environment(&[
        ("INSTAVM_LISTEN", "127.0.0.1:2"),
        ("INSTAVM_POOL_SIZE", "2"),
        ("INSTAVM_DATA_DIR", "/data/environment"),
    ]);
    let (config, _) = load_from(&overrides, Some("localhost:3"), env).unwrap();
    assert_eq!(config.listen.0.to_string(), "127.0.0.1:3");
    assert_eq!(config.pool_size, 2);
    assert_eq!(config.vm_pids, 100);
    assert_eq!(config.data_dir, PathBuf::from("/data/flag"));
}

#[test]
fn lists_come_from_the_file_and_from_the_environment() {
    let (_file, overrides) =
        file("[network]\nresolvers = ['9.9.9.9', '[::1]:5353']\n[runtime]\nextra_ca = []");
    let env = environment(&[("INSTAVM_NETWORK_DENIED_RANGES", "10.0.0.0/8, fd00::/8")]);
    let (config, _) = load_from(&overrides, None, env).unwrap();
    assert_eq!(config.network_resolvers.len(), 2);
    assert_eq!(config.network_denied_ranges.len(), 2);
    assert_eq!(config.runtime_extra_ca, Some(Vec::new()));
}

#[test]
fn all_faults_are_reported_at_once_each_with_its_place() {
    let (named, overrides) = file(
        "colour = 1\n[pool]\nsize = 5000\n[log]\nformat = 'xml'\n[limits.vms]\nmany = true\n[nothing]\nx = 1",
    );
    let env = environment(&[
        ("INSTAVM_VM_MEMORY_MB", "lots"),
        ("INSTAVM_NETWORK_RANGE", "10.1.2.3/8"),
        ("INSTAVM_PIDS", "3"),
        ("INSTAVM_NETWORK_UPSTREAM_PROXY", "ftp://user:secret@proxy:21"),
        ("INSTAVM_BOOTSTRAP_API_KEY", "short"),
    ]);
    let faults = load_from(&overrides, Some("nowhere"), env).unwrap_err();
    let path = named.path().display();
    let mut found = texts(&faults);
    found.sort();
    let mut wanted = vec![
        format!("{path}: colour: no such key; `instavmd serve --help` lists all"),
        format!("{path}: nothing: no such key; `instavmd serve --help` lists all"),
        format!("{path}: pool.size: must be 0 to 1024, not 5000"),
        format!("{path}: log.format: \"xml\" is none of text|json"),
        format!("{path}: limits.vms: must be a whole number, not {{ many = true }} (table)"),
        "INSTAVM_VM_MEMORY_MB: \"lots\" is not a whole number that fits".to_owned(),
        "INSTAVM_NETWORK_RANGE: \"10.1.2.3/8\" has bits set behind its prefix; did you mean 10.0.0.0/8?".to_owned(),
        "INSTAVM_NETWORK_UPSTREAM_PROXY: the scheme is neither http nor socks5: write it as http://USER:PASSWORD@HOST:PORT or socks5://USER:PASSWORD@HOST:PORT; USER:PASSWORD@ may be left out".to_owned(),
        "INSTAVM_PIDS: no such key; `instavmd serve --help` lists all".to_owned(),
        "INSTAVM_BOOTSTRAP_API_KEY: must be `instavm_sk_` and 16 to 128 letters, digits, '-' and '_' (the value is not shown)".to_owned(),
        "--listen: \"nowhere\" is not an address and port such as 127.0.0.1:8080 or [::1]:8080".to_owned(),
    ];
    wanted.sort();
    assert_eq!(found, wanted);
}

#[test]
fn variables_of_the_clients_are_left_alone() {
    let (_file, overrides) = file("");
    let env = environment(&[
        ("INSTAVM_API_KEY", "x"),
        ("INSTAVM_BASE_URL", "http://h"),
        ("INSTAVM_SSH_HOST", "h"),
        ("INSTAVM_UPDATE_CHECK", "0"),
        ("INSTAVM_MASTER_KEY", "k"),
        ("INSTAVM_AGENT_BINARY", "/a"),
    ]);
    load_from(&overrides, None, env).unwrap();
}

#[test]
fn keys_that_contradict_each_other_are_faults() {
    let (_file, overrides) = file("[vm]\nmemory_mb = 9000\n[limits]\nvms = 5\n[pool]\nsize=1020");
    let faults = load_from(&overrides, None, environment(&[])).unwrap_err();
    let found = texts(&faults);
    assert_eq!(found.len(), 3, "{found:?}");
    assert!(
        found[0].starts_with("vm.memory_mb: is 9000, more than limits.memory_mb_max allows (8192)")
    );
    assert!(found[1].starts_with("limits.vms_per_account: "));
    assert!(found[2].starts_with("pool.size and limits.vms together: "));
}

#[test]
fn the_bootstrap_key_is_taken_and_never_shown() {
    let (_file, overrides) = file("");
    let key = "instavm_sk_0123456789abcdefXYZ";
    let env = environment(&[("INSTAVM_BOOTSTRAP_API_KEY", key)]);
    let (_, secrets) = load_from(&overrides, None, env).unwrap();
    assert!(!format!("{secrets:?}").contains("0123"));
    assert_eq!(secrets.bootstrap_api_key.unwrap().reveal(), key);
}

#[test]
fn the_databases_url_is_taken_apart_and_its_password_never_shown() {
    let (_file, overrides) = file("database.url = 'postgres://karl:geheim@db.example/instavm'");
    let (config, _) = load_from(&overrides, None, environment(&[])).unwrap();
    let shown = format!("{config:?}");
    assert!(shown.contains("instavm at db.example:5432"), "{shown}");
    assert!(!shown.contains("geheim"));

    let (_empty, overrides) = file("");
    let (config, _) = load_from(&overrides, None, environment(&[])).unwrap();
    assert!(config.database_url.0.is_none());
    for wrong in [
        "geheim",
        "mysql://karl:geheim@h/d",
        "postgres://karl:geheim@h",
        "postgres://karl:ge/heim@h/d",
        "postgres://karl:geheim@h/d?sslmode=maybe",
    ] {
        let env = environment(&[("INSTAVM_DATABASE_URL", wrong)]);
        let found = texts(&load_from(&overrides, None, env).unwrap_err());
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("INSTAVM_DATABASE_URL: "), "{found:?}");
        assert!(!found[0].contains("heim"), "{found:?}");
    }
}

#[test]
fn a_file_that_is_no_toml_is_not_quoted() {
    let (_file, overrides) =
        file("listen = '127.0.0.1:1'\n[database]\nurl = \"postgres://karl:geheim@h/d\n");
    let found = texts(&load_from(&overrides, None, environment(&[])).unwrap_err());
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains(": line 3: "), "{found:?}");
    assert!(!found[0].contains("geheim"), "{found:?}");
}

#[test]
fn a_named_file_must_be_there() {
    let overrides = Overrides {
        config: Some(PathBuf::from("/nonexistent/instavm.toml")),
        data_dir: None,
    };
    let faults = load_from(&overrides, None, environment(&[])).unwrap_err();
    assert!(texts(&faults)[0].starts_with("/nonexistent/instavm.toml: cannot be read: "));
}

#[test]
fn the_help_names_every_key_its_default_and_its_environment_name() {
    let text = help();
    for key in KEYS {
        assert!(text.contains(&format!("  {}  (", key.path)), "{}", key.path);
        assert!(text.contains(&format!("[env: {}]", environment_name(key.path))));
    }
}

#[test]
fn a_switch_is_true_or_false_in_both_sources() {
    let (_file, overrides) =
        file("[images]\nprivate_registries = false\n[disks]\ndriver = 'directory'");
    let (config, _) = load_from(&overrides, None, environment(&[])).unwrap();
    assert!(!config.images_private_registries);
    assert_eq!(config.disks_driver, DiskDriverChoice::Directory);
    let name = "INSTAVM_IMAGES_PRIVATE_REGISTRIES";
    let (config, _) = load_from(&overrides, None, environment(&[(name, "true")])).unwrap();
    assert!(config.images_private_registries);
    let faults = load_from(&overrides, None, environment(&[(name, "yes")])).unwrap_err();
    assert_eq!(
        texts(&faults),
        [format!("{name}: \"yes\" is neither true nor false")]
    );
}

#[test]
fn the_keys_of_shares_go_together() {
    let load = |text: &str| {
        let (_file, overrides) = file(text);
        load_from(&overrides, None, environment(&[]))
    };
    let (config, _) = load("[share]\nports = '30000-30009'\naddress = '0.0.0.0'").unwrap();
    assert_eq!(config.share_ports, PortRange(30_000..=30_009));
    let (config, _) =
        load("[share]\ndomain = 'Apps.Example.com.'\npublic_scheme = 'https'\npublic_port = 443")
            .unwrap();
    assert_eq!(
        config.share_domain,
        Some(HostName("apps.example.com".to_owned()))
    );
    let faults = load("[share]\ntls_certificate = '/a.pem'").unwrap_err();
    assert_eq!(
        texts(&faults),
        [
            "share.tls_certificate: and share.tls_key go together: give both or neither",
            "share.tls_certificate: needs share.domain",
        ]
    );
    let faults = load("[share]\nports = '9-1'\ndomain = 'a b'\naddress = 'x'").unwrap_err();
    assert_eq!(texts(&faults).len(), 3);
}
