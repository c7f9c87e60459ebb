//! Providers that run PostgreSQL for others, and the terms in which each of them changes a setting
//! or gives a right. Users have no superuser there, and no `ALTER SYSTEM`.
//!
//! A provider is recognized by a role that its databases always have.

use serde::Deserialize;

use crate::catalog::quoted;

/// The provider of a database.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub(crate) enum DatabaseProvider {
    /// None that is known: there is a superuser.
    #[default]
    Unknown,
    /// Amazon RDS or Aurora.
    #[serde(rename = "rds_superuser")]
    Amazon,
    #[serde(rename = "cloudsqlsuperuser")]
    CloudSql,
    #[serde(rename = "alloydbsuperuser")]
    AlloyDb,
    #[serde(rename = "azure_pg_admin")]
    Azure,
    #[serde(rename = "neon_superuser")]
    Neon,
    #[serde(rename = "supabase_admin")]
    Supabase,
}

/// An SQL expression for the role by which the provider is recognized.
pub(crate) const PROVIDER_ROLE: &str = "coalesce((SELECT rolname FROM pg_roles WHERE rolname IN ('rds_superuser', \
     'cloudsqlsuperuser', 'alloydbsuperuser', 'azure_pg_admin', 'neon_superuser', 'supabase_admin') LIMIT 1), 'Unknown')";

impl DatabaseProvider {
    /// Returns what to do so that the WAL has what logical decoding needs.
    pub(crate) fn logical_decoding(self) -> &'static str {
        match self {
            DatabaseProvider::Unknown => "run ALTER SYSTEM SET wal_level = logical and restart PostgreSQL",
            DatabaseProvider::Amazon => {
                "set rds.logical_replication = 1 in the parameter group (of the cluster, for Aurora) and restart the \
                 instance"
            }
            DatabaseProvider::CloudSql => "set the flag cloudsql.logical_decoding = on; the instance restarts",
            DatabaseProvider::AlloyDb => "set the flag alloydb.logical_decoding = on; the instance restarts",
            DatabaseProvider::Azure => "set the server parameter wal_level = logical and restart the server",
            DatabaseProvider::Neon => "enable logical replication in the settings of the project",
            DatabaseProvider::Supabase => "set it as Supabase's documentation says, and restart PostgreSQL",
        }
    }

    /// Returns what to do so that a setting, which is read at the start of PostgreSQL, has a value.
    pub(crate) fn setting(self, name: &str, value: u32) -> String {
        match self {
            DatabaseProvider::Unknown => format!("run ALTER SYSTEM SET {name} = {value} and restart PostgreSQL"),
            DatabaseProvider::Amazon => format!("set {name} = {value} in the parameter group and restart the instance"),
            DatabaseProvider::CloudSql | DatabaseProvider::AlloyDb => {
                format!("set the flag {name} = {value}; the instance restarts")
            }
            DatabaseProvider::Azure => format!("set the server parameter {name} = {value} and restart the server"),
            DatabaseProvider::Neon | DatabaseProvider::Supabase => {
                format!("set {name} = {value} as the provider's documentation says")
            }
        }
    }

    /// Returns what to do so that a role may replicate.
    pub(crate) fn replication_right(self, role: &str) -> String {
        let (administrator, role) = (self.administrator(), quoted(role));
        match self {
            DatabaseProvider::Amazon => format!("as {administrator} run GRANT rds_replication TO {role}"),
            _ => format!("as {administrator} run ALTER ROLE {role} REPLICATION"),
        }
    }

    /// Returns the role that has most rights.
    fn administrator(self) -> &'static str {
        match self {
            DatabaseProvider::Unknown => "a superuser",
            DatabaseProvider::Amazon => "the master user",
            DatabaseProvider::CloudSql => "a member of cloudsqlsuperuser",
            DatabaseProvider::AlloyDb => "a member of alloydbsuperuser",
            DatabaseProvider::Azure => "the administrator",
            DatabaseProvider::Neon => "a role of Neon's console",
            DatabaseProvider::Supabase => "the user postgres",
        }
    }
}
