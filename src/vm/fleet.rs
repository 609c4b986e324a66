//! Walking over everything that there is: tenants, their pools, their instances.

use super::{
    instance,
    naming::{InstancePath, PoolPath, Scope},
    pool, tenant,
};
use crate::{infra::config::Roots, store::StoreError};

/// The pools of a scope, or all, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub fn pools(roots: &Roots, scope: Option<&Scope>) -> Result<Vec<PoolPath>, StoreError> {
    let tenants = match scope {
        Some(Scope { pool: Some(pool), .. }) => return Ok(vec![pool.clone()]),
        Some(Scope { tenant, pool: None }) => vec![tenant.clone()],
        None => tenant::config::ids(roots)?,
    };
    let mut paths = Vec::new();
    for tenant in tenants {
        paths.extend(pool::config::paths(roots, &tenant)?);
    }
    Ok(paths)
}

/// All instances, sorted.
///
/// # Errors
/// When a folder cannot be read.
pub fn instances(roots: &Roots) -> Result<Vec<InstancePath>, StoreError> {
    let mut paths = Vec::new();
    for pool in pools(roots, None)? {
        paths.extend(instance::config::paths(roots, &pool)?);
    }
    Ok(paths)
}
