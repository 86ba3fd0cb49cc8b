//! The steps of a build as shell text. What users name (packages, addresses, branches) is data: each is one quoted word,
//! behind `--` where a program could take it for an option. Only the last command is shell text of theirs.

use instavm_node_api::SnapshotBuild;

/// One step that runs inside the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Step {
    /// Its word in [`instavm_node_api::BuildProgress::step`].
    pub(super) name: &'static str,
    /// A line for the log that says what it does.
    pub(super) title: String,
    /// What bash is given.
    pub(super) script: String,
}

/// Where the repository is cloned to.
const REPOSITORY: &str = "/app/repo";

/// Installs packages with what the image has.
const PACKAGES: &str = r#"
packages() {
    if command -v apt-get >/dev/null; then
        export DEBIAN_FRONTEND=noninteractive
        apt-get update && apt-get install -y --no-install-recommends -- "$@" && apt-get clean
    elif command -v apk >/dev/null; then
        apk add --no-cache -- "$@"
    elif command -v dnf >/dev/null; then
        dnf install -y -- "$@"
    else
        echo 'the image has none of apt-get, apk and dnf to install packages with' >&2
        return 127
    fi
}
"#;

const PIP: &str = r#"
if ! python3 -m pip --version >/dev/null 2>&1; then
    command -v apt-get >/dev/null || { echo 'the image has no pip (python3 -m pip)' >&2; exit 127; }
    packages python3 python3-pip || exit
fi
export PIP_BREAK_SYSTEM_PACKAGES=1 PIP_ROOT_USER_ACTION=ignore PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1
exec python3 -m pip install --no-cache-dir -- "#;

const NPM: &str = r#"
command -v npm >/dev/null || { echo 'the image has no npm: add it to the packages (apt)' >&2; exit 127; }
exec npm install -g --no-audit --no-fund -- "#;

const GIT: &str = r#"
if ! command -v git >/dev/null; then
    command -v apt-get >/dev/null || { echo 'the image has no git' >&2; exit 127; }
    packages git ca-certificates || exit
fi
mkdir -p /app || exit
export GIT_TERMINAL_PROMPT=0
exec git clone "#;

/// The steps that a build asks for, in their order.
pub(super) fn steps(build: &SnapshotBuild) -> Vec<Step> {
    let mut steps = Vec::new();
    if !build.apt_packages.is_empty() {
        let words = words(&build.apt_packages);
        steps.push(step(
            "apt",
            &build.apt_packages,
            format!("{PACKAGES}packages {words}"),
        ));
    }
    if !build.pip_packages.is_empty() {
        let words = words(&build.pip_packages);
        steps.push(step(
            "pip",
            &build.pip_packages,
            format!("{PACKAGES}{PIP}{words}"),
        ));
    }
    if !build.npm_packages.is_empty() {
        let words = words(&build.npm_packages);
        steps.push(step("npm", &build.npm_packages, format!("{NPM}{words}")));
    }
    if let Some(url) = &build.git_clone_url {
        let branch = build
            .git_clone_branch
            .as_ref()
            .map(|branch| format!("--branch={} ", quoted(branch)))
            .unwrap_or_default();
        let script = format!("{PACKAGES}{GIT}{branch}-- {} {REPOSITORY}", quoted(url));
        steps.push(step("git", std::slice::from_ref(url), script));
    }
    if let Some(command) = &build.post_build_command {
        steps.push(Step {
            name: "command",
            title: "running the post-build command".to_owned(),
            script: command.clone(),
        });
    }
    steps
}

fn step(name: &'static str, what: &[String], script: String) -> Step {
    Step {
        name,
        title: format!("{name}: {}", what.join(" ")),
        script,
    }
}

fn words(words: &[String]) -> String {
    let quoted: Vec<String> = words.iter().map(|word| quoted(word)).collect();
    quoted.join(" ")
}

/// A word that the shell takes as it is.
fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use instavm_node_api::SnapshotId;
    use std::process::Command;

    fn build() -> SnapshotBuild {
        SnapshotBuild {
            id: SnapshotId("snap_a".to_owned()),
            oci_image: "debian:12".to_owned(),
            memory_mb: 512,
            vcpu_count: 1,
            disk_bytes: 1 << 30,
            apt_packages: Vec::new(),
            pip_packages: Vec::new(),
            npm_packages: Vec::new(),
            git_clone_url: None,
            git_clone_branch: None,
            post_build_command: None,
            env: Default::default(),
        }
    }

    fn strings(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_owned()).collect()
    }

    #[test]
    fn steps_come_in_their_order() {
        let all = SnapshotBuild {
            apt_packages: strings(&["jq"]),
            pip_packages: strings(&["flask"]),
            npm_packages: strings(&["left-pad"]),
            git_clone_url: Some("https://example.com/a.git".to_owned()),
            git_clone_branch: Some("main".to_owned()),
            post_build_command: Some("make".to_owned()),
            ..build()
        };
        let names: Vec<&str> = steps(&all).iter().map(|step| step.name).collect();
        assert_eq!(names, ["apt", "pip", "npm", "git", "command"]);
        assert!(steps(&build()).is_empty());
    }

    /// Programs that only tell what they were called with, one argument a line.
    fn told(build: &SnapshotBuild) -> String {
        let folder = tempfile::tempdir().unwrap();
        let teller = "#!/bin/sh\nfor word in \"$@\"; do echo \"[$word]\"; done\n";
        for program in ["apt-get", "npm", "git", "mkdir"] {
            let path = folder.path().join(program);
            std::fs::write(&path, teller).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
                .unwrap();
        }
        let mut told = String::new();
        for step in steps(build) {
            let output = Command::new("bash")
                .arg("-c")
                .arg(&step.script)
                .env("PATH", format!("{}:/usr/bin:/bin", folder.path().display()))
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            told.push_str(&String::from_utf8(output.stdout).unwrap());
        }
        told
    }

    #[test]
    fn what_users_name_is_never_shell_text_nor_an_option() {
        let evil = "x'; touch /tmp/owned; echo '$(id)`id`";
        let told = told(&SnapshotBuild {
            apt_packages: strings(&[evil, "-o=DPkg::Pre-Invoke::=id"]),
            npm_packages: strings(&[evil, "--prefix=/"]),
            git_clone_url: Some(evil.to_owned()),
            git_clone_branch: Some("--upload-pack=id".to_owned()),
            ..build()
        });
        assert_eq!(told.matches(&format!("[{evil}]")).count(), 3, "{told}");
        let after_options = |word: &str| told.contains(&format!("[--]\n[{evil}]\n[{word}]"));
        assert!(after_options("-o=DPkg::Pre-Invoke::=id"), "{told}");
        assert!(after_options("--prefix=/"), "{told}");
        assert!(told.contains(&format!(
            "[clone]\n[--branch=--upload-pack=id]\n[--]\n[{evil}]\n[/app/repo]"
        )));
    }
}
