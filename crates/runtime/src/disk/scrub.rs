//! What a scrub found.

/// What a scrub found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ScrubReport {
    /// There is something to compare with: `false` for the driver `directory`, which keeps no checksums.
    pub verified: bool,
    /// Bytes that were read.
    pub bytes: u64,
    /// Places that could not be read.
    pub read_errors: u64,
    /// Blocks of files that are not what was written.
    pub checksum_errors: u64,
    /// Blocks of the file system's own trees that are not what was written.
    pub tree_errors: u64,
    /// Damaged superblocks.
    pub super_errors: u64,
    /// Errors that were put right from a second copy.
    pub corrected_errors: u64,
    /// Errors that could not be put right.
    pub uncorrectable_errors: u64,
}

impl ScrubReport {
    /// Nothing is damaged, as far as there is anything to compare with.
    pub fn is_clean(&self) -> bool {
        self.read_errors == 0
            && self.checksum_errors == 0
            && self.tree_errors == 0
            && self.super_errors == 0
            && self.uncorrectable_errors == 0
    }
}
