//! Builds the static guest agent, which the binary embeds as `include_bytes!(env!("WARREN_GUEST_AGENT"))`.
//!
//! A build of its own in `guest-agent` of the target directory: another profile, other flags, only what the agent needs. The
//! environment's `WARREN_GUEST_AGENT` names a ready-made one instead (for packagers, and hosts that cannot
//! build for Linux).

use std::path::{Path, PathBuf};

include!("../guest/build-support/agent.rs");

fn main() -> Result<(), String> {
    println!("cargo::rerun-if-env-changed=WARREN_GUEST_AGENT");
    if let Some(ready_made) = std::env::var_os("WARREN_GUEST_AGENT") {
        let path = PathBuf::from(ready_made);
        println!("cargo::rerun-if-changed={}", path.display());
        return export(&path);
    }
    let variable = |name: &str| std::env::var(name).map_err(|error| format!("{name}: {error}"));
    let package = PathBuf::from(variable("CARGO_MANIFEST_DIR")?);
    let workspace = package.join("../..");
    let guest = workspace.join("crates/guest");
    // What the agent is made of, and the crates of this workspace that are part of it.
    for input in [
        "src",
        "build-support",
        "Cargo.toml",
        "../tar/src",
        "../tree/src",
    ] {
        println!("cargo::rerun-if-changed={}", guest.join(input).display());
    }
    println!(
        "cargo::rerun-if-changed={}",
        workspace.join("Cargo.lock").display()
    );
    // <target>/<profile>/build/<package>/out: one agent for all profiles, and for the test that boots it.
    let out = PathBuf::from(variable("OUT_DIR")?);
    let target_dir = out.ancestors().nth(4).unwrap_or(&out).join("guest-agent");
    let architecture = variable("CARGO_CFG_TARGET_ARCH")?;
    export(&build_guest_agent(&workspace, &target_dir, &architecture)?)
}

fn export(agent: &Path) -> Result<(), String> {
    let agent = agent
        .canonicalize()
        .map_err(|error| format!("{}: {error}", agent.display()))?;
    println!("cargo::rustc-env=WARREN_GUEST_AGENT={}", agent.display());
    Ok(())
}
