//! Instances of a service as Consul's catalog and health endpoints list them.
#![forbid(unsafe_code)]

use serde::Deserialize;

use super::{Entry, element};
use crate::grammar::parameter::{self, ParameterError};
use crate::model::list::WEIGHT_MAX;
use crate::model::{Endpoint, Parameters};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CatalogService {
    #[serde(default)]
    address: String,
    #[serde(default, rename = "ServiceID")]
    service_id: String,
    #[serde(default)]
    service_address: String,
    service_port: i64,
    #[serde(default)]
    service_tags: Option<Vec<String>>,
    #[serde(default)]
    service_weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HealthEntry {
    #[serde(default)]
    node: Node,
    service: Service,
    #[serde(default)]
    checks: Option<Vec<Check>>,
}

#[derive(Default, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Node {
    address: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Service {
    #[serde(default, rename = "ID")]
    id: String,
    #[serde(default)]
    address: String,
    port: i64,
    #[serde(default)]
    tags: Option<Vec<String>>,
    #[serde(default)]
    weights: Option<Weights>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Check {
    #[serde(default)]
    status: String,
}

/// How much a server counts by its health (Consul, "Services: weights").
#[derive(Clone, Copy, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
struct Weights {
    passing: i64,
    warning: i64,
}

impl Default for Weights {
    fn default() -> Self {
        Self { passing: 1, warning: 1 }
    }
}

/// The worst of a server's checks.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Health {
    Passing,
    Warning,
    /// Maintenance is a critical check of its own; a status of no known name counts alike.
    Critical,
}

/// The server of an element of `/v1/catalog/service/NAME`.
pub fn service(place: usize, json: &str) -> Entry {
    let service: CatalogService = match element(place, json, "/ServiceID") {
        Ok(service) => service,
        Err(entry) => return entry,
    };
    Entry {
        endpoint: endpoint(&service.service_address, &service.address, service.service_port),
        parameters: parameters(Health::Passing, service.service_weights, service.service_tags),
        name: service.service_id,
    }
}

/// The server of an element of `/v1/health/service/NAME`.
pub fn health(place: usize, json: &str) -> Entry {
    let entry: HealthEntry = match element(place, json, "/Service/ID") {
        Ok(entry) => entry,
        Err(entry) => return entry,
    };
    let health = entry.checks.iter().flatten().map(Check::health).max().unwrap_or(Health::Passing);
    Entry {
        endpoint: endpoint(&entry.service.address, &entry.node.address, entry.service.port),
        parameters: parameters(health, entry.service.weights, entry.service.tags),
        name: entry.service.id,
    }
}

impl Check {
    fn health(&self) -> Health {
        match self.status.as_str() {
            "passing" => Health::Passing,
            "warning" => Health::Warning,
            _ => Health::Critical,
        }
    }
}

/// A service without an address of its own is at its node's.
fn endpoint(own: &str, node: &str, port: i64) -> Result<Endpoint, String> {
    let host = if own.is_empty() { node } else { own };
    let port = u16::try_from(port).unwrap_or(0);
    Endpoint::from_host_port(host, port).map_err(|error| error.to_string())
}

/// Tags say more than Consul's weights do; what its checks say is not theirs to say.
fn parameters(
    health: Health,
    weights: Option<Weights>,
    tags: Option<Vec<String>>,
) -> Result<Parameters, String> {
    let weight = weights.unwrap_or_default().of(health);
    let critical = health == Health::Critical;
    let mut parameters = Parameters { weight, critical, ..Parameters::CONSUL };
    for tag in tags.iter().flatten() {
        match parameter::set(&mut parameters, tag) {
            Ok(()) | Err(ParameterError::Unknown(_)) => {}
            Err(error) => return Err(format!("tag: {error}")),
        }
    }
    Ok(parameters)
}

impl Weights {
    /// Consul itself takes weights out of its range (passing from 1, warning from 0) for 1.
    fn of(self, health: Health) -> u32 {
        let (weight, min) = match health {
            Health::Warning => (self.warning, 0),
            Health::Passing | Health::Critical => (self.passing, 1),
        };
        u32::try_from(weight).ok().filter(|weight| (min..=WEIGHT_MAX).contains(weight)).unwrap_or(1)
    }
}
