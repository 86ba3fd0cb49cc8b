//! The places where tests let a step fail. The program itself has nothing here.

/// Fails where a test wants it to.
#[cfg(not(test))]
#[inline]
pub(crate) fn at(_step: &'static str) -> std::io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use injected::{at, at_every, inject};

#[cfg(test)]
mod injected {
    use std::io;
    use std::sync::Mutex;

    /// The step that fails, and whether it goes on failing.
    static WANTED: Mutex<Option<(&str, bool)>> = Mutex::new(None);

    pub(crate) fn at(step: &'static str) -> io::Result<()> {
        let mut wanted = WANTED.lock().unwrap();
        match *wanted {
            Some((name, always)) if name == step => {
                if !always {
                    *wanted = None;
                }
                Err(io::Error::other(format!("a test lets {step:?} fail")))
            }
            _ => Ok(()),
        }
    }

    /// Lets this step fail once.
    pub(crate) fn inject(step: &'static str) {
        *WANTED.lock().unwrap() = Some((step, false));
    }

    /// Lets this step fail whenever it is reached; an empty name ends that.
    pub(crate) fn at_every(step: &'static str) {
        *WANTED.lock().unwrap() = Some((step, true));
    }
}
