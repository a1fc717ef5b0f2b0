//! `warren doctor`: what this host can do, what was chosen and why, and what to do about the rest. It
//! looks for itself and needs no running server.

use super::config::Config;
use super::data_dir::Place;
use super::{registries, wire};
use serde::Serialize;
use std::path::Path;
use std::process::ExitCode;
use warren_core::ports::hypervisor::HypervisorReport;

/// How one thing stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Standing {
    /// As it should be.
    Ok,
    /// It works, with a limit that is worth knowing.
    Warning,
    /// Something will not work.
    Problem,
}

#[derive(Debug, Serialize)]
struct Finding {
    what: String,
    standing: Standing,
    detail: String,
}

#[derive(Debug, Serialize)]
struct Diagnosis {
    version: &'static str,
    findings: Vec<Finding>,
    hypervisors: Vec<HypervisorReport>,
}

/// Looks at everything and prints it; fails when there is a problem.
pub(crate) async fn run(config: Config, json: bool) -> anyhow::Result<ExitCode> {
    let mut findings = vec![data_directory(&config.data_dir), secret(&config)];
    let mut hypervisors = Vec::new();
    let (drivers, unusable) = wire::hypervisors(&config, &config.data_dir.join("cache"));
    for driver in drivers {
        match driver.probe().await {
            Ok(report) => {
                findings.push(Finding {
                    what: format!("hypervisor {}", report.kind),
                    standing: Standing::Ok,
                    detail: format!("{} ({})", report.version, report.binary.display()),
                });
                findings.push(Finding {
                    what: "accelerator".to_owned(),
                    standing: if report.accelerator
                        == warren_core::ports::hypervisor::Accelerator::Tcg
                    {
                        Standing::Warning
                    } else {
                        Standing::Ok
                    },
                    detail: report.reason.clone(),
                });
                findings.push(Finding {
                    what: "guest kernel".to_owned(),
                    standing: Standing::Ok,
                    detail: report.kernel.clone(),
                });
                hypervisors.push(report);
            }
            Err(error) => findings.push(Finding {
                what: format!("hypervisor {}", driver.kind()),
                standing: Standing::Problem,
                detail: error.sentence(),
            }),
        }
    }
    findings.extend(unusable.into_iter().map(|(what, detail)| Finding {
        what: format!("hypervisor {what}"),
        standing: Standing::Problem,
        detail,
    }));
    findings.extend(network(&config).await);
    findings.extend(registries(&config));
    let works = !hypervisors.is_empty();
    let healthy = works && findings.iter().all(|it| it.standing != Standing::Problem);
    if json {
        let diagnosis = Diagnosis {
            version: env!("CARGO_PKG_VERSION"),
            findings,
            hypervisors,
        };
        anstream::println!("{}", serde_json::to_string_pretty(&diagnosis)?);
    } else {
        for finding in &findings {
            let sign = match finding.standing {
                Standing::Ok => "ok     ",
                Standing::Warning => "warning",
                Standing::Problem => "PROBLEM",
            };
            anstream::println!("{sign}  {:<24} {}", finding.what, finding.detail);
        }
        if !works {
            anstream::println!("\nNo instance can run here until a hypervisor works.");
        }
    }
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn data_directory(path: &Path) -> Finding {
    let what = "data directory".to_owned();
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    match rustix::fs::statvfs(existing) {
        Ok(stat) => {
            let free = warren_core::ByteSize(stat.f_bavail.saturating_mul(stat.f_frsize));
            let standing = if free.0 < 2 << 30 {
                Standing::Warning
            } else {
                Standing::Ok
            };
            let missing = if path.exists() { "" } else { ", will be made" };
            Finding {
                what,
                standing,
                detail: format!("{} ({free} free{missing})", path.display()),
            }
        }
        Err(error) => Finding {
            what,
            standing: Standing::Problem,
            detail: format!("{}: {error}", path.display()),
        },
    }
}

fn secret(config: &Config) -> Finding {
    let what = "authentication".to_owned();
    match (&config.jwt_secret, config.listen.is_loopback()) {
        (Some(_), _) => Finding { what, standing: Standing::Ok, detail: "every request needs a bearer token (JWT, HS256)".to_owned() },
        (None, true) => Finding {
            what,
            standing: Standing::Ok,
            detail: "none: everybody on this machine may use the API, nobody else (set JWT_SECRET to change that)".to_owned(),
        },
        (None, false) => Finding {
            what,
            standing: Standing::Problem,
            detail: format!("the server will not listen on {} without JWT_SECRET", config.listen),
        },
    }
}

fn registries(config: &Config) -> Vec<Finding> {
    let what = || "registries".to_owned();
    let found = |standing, detail| Finding {
        what: what(),
        standing,
        detail,
    };
    let mut findings: Vec<Finding> = registries::in_words(config)
        .into_iter()
        .map(|line| found(Standing::Ok, line))
        .collect();
    if let Err(error) = registries::settings(config) {
        findings.push(found(Standing::Problem, error.to_string()));
    }
    findings
}

async fn network(config: &Config) -> Vec<Finding> {
    let what = || "network".to_owned();
    let place = Place {
        // Nothing carries this id: doctor only looks.
        installation: warren_core::InstallationId::from_entropy([0; 3]),
        instances: config.data_dir.join("instances"),
    };
    let report = match wire::network(config, &place) {
        Ok(network) => network
            .report()
            .await
            .map_err(|error| anyhow::anyhow!("{}", error.sentence())),
        Err(error) => Err(error),
    };
    match report {
        Ok(report) => {
            let mut findings = vec![Finding {
                what: what(),
                standing: Standing::Ok,
                detail: report.reason,
            }];
            findings.extend(report.warnings.into_iter().map(|detail| Finding {
                what: what(),
                standing: Standing::Warning,
                detail,
            }));
            findings
        }
        Err(error) => vec![Finding {
            what: what(),
            standing: Standing::Problem,
            detail: format!("{error:#}"),
        }],
    }
}
