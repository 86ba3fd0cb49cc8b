//! The rows of executions in the background.

use super::service::{Record, Status, language_word};
use crate::clock::Moment;
use instavm_node_api::{Language, VmId};
use instavm_store::{Database, Row, StoreError};

/// The columns of an execution.
macro_rules! columns {
    () => {
        "id, account_id, session_id, vm_id, status, language, deadline_at, created_at, finished_at, exit_code, \
         execution_micros, cpu_micros, timed_out, stdout, stderr"
    };
}

/// Adds an execution that is about to be started.
pub(crate) async fn insert(database: &Database, record: &Record) -> Result<(), StoreError> {
    database
        .execute(
            "INSERT INTO executions (id, account_id, session_id, vm_id, status, language, deadline_at, created_at, \
             timed_out, stdout, stderr) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11)",
            vec![
                record.id.as_str().into(),
                record.account_id.into(),
                record.session_id.as_str().into(),
                record.vm_id.0.as_str().into(),
                record.status.as_str().into(),
                record.language.map(language_word).into(),
                record.deadline_at.0.into(),
                record.created_at.0.into(),
                record.timed_out.into(),
                Vec::new().into(),
                Vec::new().into(),
            ],
        )
        .await?;
    Ok(())
}

/// Records that the VM has accepted it.
pub(crate) async fn set_running(database: &Database, id: &str) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE executions SET status = 'running' WHERE id = $1 AND status = 'pending'",
            vec![id.into()],
        )
        .await?;
    Ok(())
}

/// Records how it ended.
pub(crate) async fn finish(database: &Database, record: &Record) -> Result<(), StoreError> {
    database
        .execute(
            "UPDATE executions SET status = $2, language = $3, finished_at = $4, exit_code = $5, \
             execution_micros = $6, cpu_micros = $7, timed_out = $8, stdout = $9, stderr = $10 \
             WHERE id = $1 AND status IN ('pending', 'running')",
            vec![
                record.id.as_str().into(),
                record.status.as_str().into(),
                record.language.map(language_word).into(),
                record.finished_at.map(|moment| moment.0).into(),
                record.exit_code.map(i64::from).into(),
                record.execution_micros.into(),
                record.cpu_micros.into(),
                record.timed_out.into(),
                Vec::from(record.stdout.clone()).into(),
                Vec::from(record.stderr.clone()).into(),
            ],
        )
        .await?;
    Ok(())
}

/// An execution of an account.
pub(crate) async fn find(
    database: &Database,
    account_id: i64,
    id: &str,
) -> Result<Option<Record>, StoreError> {
    let row = database
        .fetch_optional(
            concat!(
                "SELECT ",
                columns!(),
                " FROM executions WHERE id = $1 AND account_id = $2"
            ),
            vec![id.into(), account_id.into()],
        )
        .await?;
    row.map(|row| read(&row)).transpose()
}

/// How many bytes of output an execution of an account has on record.
pub(crate) async fn output_size(
    database: &Database,
    account_id: i64,
    id: &str,
) -> Result<Option<u64>, StoreError> {
    let row = database
        .fetch_optional(
            "SELECT CAST(length(stdout) + length(stderr) AS BIGINT) AS size FROM executions \
             WHERE id = $1 AND account_id = $2",
            vec![id.into(), account_id.into()],
        )
        .await?;
    let size = row.map(|row| row.get::<i64>("size")).transpose()?;
    Ok(size.map(|size| u64::try_from(size).unwrap_or(0)))
}

/// The executions of all accounts whose end is not on record.
pub(crate) async fn unfinished(database: &Database) -> Result<Vec<Record>, StoreError> {
    let rows = database
        .fetch(
            concat!(
                "SELECT ",
                columns!(),
                " FROM executions WHERE status IN ('pending', 'running')"
            ),
            vec![],
        )
        .await?;
    rows.iter().map(read).collect()
}

/// Drops the executions that ended before a moment.
pub(crate) async fn drop_old(database: &Database, before: Moment) -> Result<u64, StoreError> {
    database
        .execute(
            "DELETE FROM executions WHERE status IN ('completed', 'failed') AND finished_at < $1",
            vec![before.0.into()],
        )
        .await
}

fn read(row: &Row) -> Result<Record, StoreError> {
    let status: String = row.get("status")?;
    let language: Option<String> = row.get("language")?;
    Ok(Record {
        id: row.get("id")?,
        account_id: row.get("account_id")?,
        session_id: row.get("session_id")?,
        vm_id: VmId(row.get("vm_id")?),
        status: Status::parse(&status).ok_or(StoreError::Content {
            column: "status",
            found: status,
        })?,
        language: [Language::Python, Language::Bash]
            .into_iter()
            .find(|known| Some(language_word(*known)) == language.as_deref()),
        deadline_at: Moment(row.get("deadline_at")?),
        created_at: Moment(row.get("created_at")?),
        finished_at: row.get::<Option<i64>>("finished_at")?.map(Moment),
        exit_code: row
            .get::<Option<i64>>("exit_code")?
            .and_then(|code| i32::try_from(code).ok()),
        execution_micros: row.get("execution_micros")?,
        cpu_micros: row.get("cpu_micros")?,
        timed_out: row.get("timed_out")?,
        stdout: row.get::<Vec<u8>>("stdout")?.into(),
        stderr: row.get::<Vec<u8>>("stderr")?.into(),
    })
}
