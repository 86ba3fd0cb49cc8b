//! `instavmd account`: written to the database directly; a daemon that runs is told to look again.

use crate::admin::AdminClient;
use crate::cli::AccountCommand;
use crate::commands::block_on;
use crate::config::Config;
use crate::{output, wiring};
use anyhow::Context;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;

/// An account that was just made, with the only showing of its key.
#[derive(serde::Serialize)]
pub(crate) struct NewAccount {
    pub(crate) account_id: String,
    pub(crate) email: String,
    pub(crate) api_key: String,
}

/// An account in the list.
#[derive(Debug, serde::Serialize)]
pub(crate) struct AccountLine {
    pub(crate) account_id: String,
    pub(crate) email: String,
    pub(crate) created_at: String,
    pub(crate) disabled: bool,
}

/// Does what the command line asks about accounts.
pub(crate) fn run(command: AccountCommand) -> anyhow::Result<ExitCode> {
    match command {
        AccountCommand::Create {
            email,
            overrides,
            json,
        } => create(&crate::load(&overrides)?, &email, json)?,
        AccountCommand::List { overrides, json } => list(&crate::load(&overrides)?, json)?,
        AccountCommand::Disable { account, overrides } => {
            disable(&crate::load(&overrides)?, &account)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn create(config: &Config, email: &str, json: bool) -> anyhow::Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.data_dir)
        .with_context(|| {
            format!(
                "the data directory {} cannot be made",
                config.data_dir.display()
            )
        })?;
    let account = block_on(async {
        let account = wiring::create_account(config, email)
            .await
            .map_err(anyhow::Error::from_boxed)
            .context("the account is not made")?;
        tell_daemon(config).await?;
        Ok(account)
    })?;
    if json {
        output::json(&account)?;
    } else {
        output::line(&format!("account  {}", account.account_id))?;
        output::line(&format!("email    {}", account.email))?;
        output::line(&format!("api key  {}", account.api_key))?;
        output::note("The key is shown only now.");
    }
    Ok(())
}

fn list(config: &Config, json: bool) -> anyhow::Result<()> {
    let accounts = block_on(async {
        wiring::list_accounts(config)
            .await
            .map_err(anyhow::Error::from_boxed)
            .context("the accounts cannot be listed")
    })?;
    if json {
        return Ok(output::json(&accounts)?);
    }
    let mut rows = vec![
        ["ACCOUNT", "EMAIL", "CREATED", "STATE"]
            .map(String::from)
            .to_vec(),
    ];
    rows.extend(accounts.into_iter().map(|account| {
        let state = if account.disabled {
            "disabled"
        } else {
            "active"
        };
        vec![
            account.account_id,
            account.email,
            account.created_at,
            state.to_owned(),
        ]
    }));
    Ok(output::table(&rows)?)
}

fn disable(config: &Config, account: &str) -> anyhow::Result<()> {
    block_on(async {
        wiring::disable_account(config, account)
            .await
            .map_err(anyhow::Error::from_boxed)
            .context("the account is not disabled")?;
        tell_daemon(config).await
    })?;
    output::note(&format!("{account} is disabled"));
    Ok(())
}

/// Has a daemon that runs take over what was written; it reads everything itself when it starts.
async fn tell_daemon(config: &Config) -> anyhow::Result<()> {
    let told = async {
        match AdminClient::connect(&config.data_dir).await? {
            Some(mut daemon) => daemon.reload_accounts().await,
            None => Ok(()),
        }
    };
    told.await
        .context("it is written, but the running daemon does not know it; restart it")
}
