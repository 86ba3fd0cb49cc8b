//! A private PostgreSQL server for tests, from the host's package.
//!
//! Its programs are those of Debian's package; it listens on a Unix socket alone, keeps its
//! data in the folder for temporary files, and trusts it to its file system (no `fsync`). All test processes of this
//! checkout share it: whoever needs it first starts it, everybody holds a shared lock while they live, and a watcher
//! ends it once nobody has held the lock for a while. So it goes away also when the tests are killed.

use anyhow::{Context, Result, ensure};
use std::fs::{self, File, OpenOptions};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

/// Where Debian and Ubuntu keep the servers, one folder a version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// Whom a server runs as when the tests run as root, which PostgreSQL refuses: the package's own user.
const USER: &str = "postgres";
/// The server's settings: fast, and for this host only.
const SETTINGS: &str = "-c listen_addresses= -c fsync=off -c synchronous_commit=off -c full_page_writes=off \
     -c max_connections=200 -c shared_buffers=32MB -c autovacuum=off";
/// Ends the server once nobody has used it for some seconds. Arguments: folder, `pg_ctl`, and how to become its user.
const WATCHER: &str = r#"
base=$1 pg_ctl=$2
shift 2
while :; do
    flock "$base/users" true
    sleep 5
    exec 8>"$base/start"
    flock 8
    exec 9>"$base/users"
    if flock --nonblock 9; then
        "$@" "$pg_ctl" --pgdata "$base/server/data" --mode immediate stop
        rm -rf "$base/server"
        exit
    fi
    exec 8>&- 9>&-
done
"#;

/// The running server.
#[derive(Debug)]
pub(crate) struct Server {
    programs: PathBuf,
    socket_folder: PathBuf,
    /// Held while this process lives.
    _users: File,
}

impl Server {
    /// The server of this checkout, started if it does not run.
    ///
    /// # Errors
    /// When the package is missing, or the server does not start.
    pub(crate) fn shared() -> Result<&'static Server> {
        static SERVER: OnceLock<Result<Server, String>> = OnceLock::new();
        SERVER
            .get_or_init(|| start().map_err(|error| format!("{error:#}")))
            .as_ref()
            .map_err(|error| anyhow::anyhow!("no PostgreSQL for the tests: {error}"))
    }

    /// Runs a statement of the server's administrator; returns what it answers.
    ///
    /// # Errors
    /// When the server refuses it.
    pub(crate) fn run(&self, statement: &str) -> Result<String> {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.args(["--no-psqlrc", "--quiet", "--tuples-only", "--no-align"])
            .arg("--host")
            .arg(&self.socket_folder)
            .args(["--username", USER, "--dbname", "postgres", "--command"])
            .arg(statement)
            .stdin(Stdio::null());
        done(&mut psql)
    }

    /// The URL of a database of this server.
    pub(crate) fn url(&self, database: &str) -> String {
        format!(
            "postgres:///{database}?host={}&user={USER}",
            self.socket_folder.display()
        )
    }
}

fn start() -> Result<Server> {
    let programs = programs()?;
    let mut checkout = DefaultHasher::new();
    (env!("CARGO_MANIFEST_DIR"), SETTINGS).hash(&mut checkout);
    let name = format!("instavm-postgresql-{:08x}", checkout.finish() as u32);
    let base = std::env::temp_dir().join(name);
    fs::create_dir_all(&base)?;
    fs::set_permissions(&base, fs::Permissions::from_mode(0o755))?;
    let lock = |name| {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        options.open(base.join(name))
    };
    let starting = lock("start")?;
    starting.lock()?;
    let users = lock("users")?;
    users.lock_shared()?;
    let server = base.join("server");
    if !answers(&programs, &server)? {
        if server.exists() {
            fs::remove_dir_all(&server)?;
        }
        make(&programs, &base, &server)?;
    }
    Ok(Server {
        programs,
        socket_folder: server,
        _users: users,
    })
}

/// The newest version's folder of programs.
fn programs() -> Result<PathBuf> {
    let missing = || {
        format!(
            "no server in {VERSIONS}: install the package `postgresql` (`make setup` does it; Debian, Ubuntu)"
        )
    };
    let versions = fs::read_dir(VERSIONS).with_context(missing)?;
    versions
        .flatten()
        .filter_map(|entry| {
            let version: u32 = entry.file_name().to_str()?.parse().ok()?;
            let programs = entry.path().join("bin");
            ["initdb", "postgres", "pg_ctl", "psql"]
                .iter()
                .all(|program| programs.join(program).is_file())
                .then_some((version, programs))
        })
        .max_by_key(|(version, _)| *version)
        .map(|(_, programs)| programs)
        .with_context(missing)
}

/// Who runs the server: nobody else than us, or the package's user when we are root.
struct Runner {
    ids: Option<(u32, u32)>,
}

impl Runner {
    fn find() -> Result<Runner> {
        if fs::metadata("/proc/self")?.uid() != 0 {
            return Ok(Runner { ids: None });
        }
        let users = fs::read_to_string("/etc/passwd")?;
        let ids = users.lines().find_map(|line| {
            let mut fields = line.split(':');
            (fields.next()? == USER).then_some(())?;
            let mut ids = fields.skip(1).map(str::parse);
            Some((ids.next()?.ok()?, ids.next()?.ok()?))
        });
        let ids = ids.with_context(|| {
            format!("there is no user {USER}, whom the package `postgresql` brings along")
        })?;
        Ok(Runner { ids: Some(ids) })
    }

    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new(program);
        command
            .current_dir("/")
            .stdin(Stdio::null())
            .env("LC_ALL", "C.UTF-8");
        if let Some((user, group)) = self.ids {
            command.uid(user).gid(group);
        }
        command
    }

    /// The beginning of a command line that becomes this user.
    fn prefix(&self) -> Vec<String> {
        match self.ids {
            None => vec!["env".to_owned()],
            Some((user, group)) => vec![
                "setpriv".to_owned(),
                format!("--reuid={user}"),
                format!("--regid={group}"),
                "--clear-groups".to_owned(),
            ],
        }
    }
}

fn answers(programs: &Path, server: &Path) -> Result<bool> {
    let data = server.join("data");
    if !server.join("complete").exists() {
        return Ok(false);
    }
    let status = Runner::find()?
        .command(&programs.join("pg_ctl"))
        .arg("--pgdata")
        .arg(&data)
        .arg("status")
        .output()?;
    Ok(status.status.success())
}

fn make(programs: &Path, base: &Path, server: &Path) -> Result<()> {
    let runner = Runner::find()?;
    fs::create_dir(server)?;
    if let Some((user, group)) = runner.ids {
        chown(server, Some(user), Some(group))?;
    }
    let data = server.join("data");
    done(
        runner
            .command(&programs.join("initdb"))
            .args([
                "--auth=trust",
                "--encoding=UTF8",
                "--no-sync",
                "--no-instructions",
            ])
            .arg(format!("--username={USER}"))
            .arg("--pgdata")
            .arg(&data),
    )?;
    done(
        runner
            .command(&programs.join("pg_ctl"))
            .args(["--wait", "--silent", "--log"])
            .arg(server.join("log"))
            .arg("--pgdata")
            .arg(&data)
            .arg("--options")
            .arg(format!("-k '{}' {SETTINGS}", server.display()))
            .arg("start"),
    )?;
    Command::new("sh")
        .args(["-c", WATCHER, "watcher"])
        .arg(base)
        .arg(programs.join("pg_ctl"))
        .args(runner.prefix())
        .current_dir("/")
        .process_group(0)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .context("the server's watcher cannot be started")?;
    fs::write(server.join("complete"), "")?;
    Ok(())
}

fn done(command: &mut Command) -> Result<String> {
    let program = command.get_program().to_owned();
    let output = command
        .output()
        .with_context(|| format!("{} cannot be run", program.display()))?;
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(
        output.status.success(),
        "{} failed: {told}{}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(told)
}
