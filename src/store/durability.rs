//! What an append survives once it is acknowledged.

use fjall::PersistMode;

/// What an append survives once it is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum Durability {
    /// The end of the process and of the machine: it is synced to the disk.
    #[default]
    Sync,
    /// The end of the process: it is handed to the operating system, which a power cut may take it from.
    Os,
}

impl Durability {
    pub(super) const fn mode(self) -> PersistMode {
        match self {
            Self::Sync => PersistMode::SyncData,
            Self::Os => PersistMode::Buffer,
        }
    }
}
