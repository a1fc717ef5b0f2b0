// Builds the static guest agent. Included by `crates/warren/build.rs`, which embeds it, and by the test that
// boots it: both must build it in the same way.

/// Builds `warren-guest` in `target_dir` and returns the binary's path. Static glibc, because there is no
/// need for a second target; optimised for size, because every instance's memory holds it. Cargo itself finds
/// out whether anything has changed.
fn build_guest_agent(
    workspace: &std::path::Path,
    target_dir: &std::path::Path,
    architecture: &str,
) -> Result<std::path::PathBuf, String> {
    let target = format!("{architecture}-unknown-linux-gnu");
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = std::process::Command::new(cargo);
    command
        .current_dir(workspace)
        .args(["build", "--release", "--locked", "--offline", "--quiet"])
        .args(["--package", "warren-guest", "--bin", "warren-guest"])
        .args(["--no-default-features", "--features", "agent"])
        .args(["--target", &target])
        .env("CARGO_TARGET_DIR", target_dir)
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_OPT_LEVEL", "z")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
        // What the outer cargo has set for the crate it is building, and clippy's wrapper.
        .env_remove("CARGO_ENCODED_RUSTFLAGS")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CLIPPY_ARGS")
        .env_remove("CARGO_BUILD_TARGET");
    let output = command.output().map_err(|error| format!("cargo: {error}"))?;
    if !output.status.success() {
        return Err(format!(
            "building the guest agent failed:\n{}",
            String::from_utf8_lossy(&output.stderr)
        ));
    }
    Ok(target_dir.join(target).join("release").join("warren-guest"))
}
