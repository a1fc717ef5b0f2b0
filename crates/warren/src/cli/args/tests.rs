#![expect(clippy::unwrap_used, reason = "tests fail by panicking")]

use super::*;
use crate::cli::values::{EnvWord, Filter};
use clap::CommandFactory;
use warren_core::state::StateName;

fn parse(words: &[&str]) -> Result<Cli, clap::Error> {
    Cli::try_parse_from(std::iter::once(&"warren").chain(words))
}

fn run(words: &[&str]) -> RunArgs {
    match parse(words).unwrap().command {
        Command::Run(run) => *run,
        other => panic!("{other:?}"),
    }
}

#[test]
fn the_definition_is_consistent() {
    Cli::command().debug_assert();
}

#[test]
fn every_command_teaches_with_a_paragraph_and_examples() {
    fn check(command: &clap::Command, path: &str) {
        let about = command
            .get_long_about()
            .unwrap_or_else(|| panic!("{path} has no paragraph"))
            .to_string();
        assert!(about.len() > 60, "{path}: {about}");
        if !command.has_subcommands() {
            let after = command
                .get_after_help()
                .unwrap_or_else(|| panic!("{path} has no examples"))
                .to_string();
            assert!(after.contains("warren "), "{path}: {after}");
        }
        for argument in command.get_arguments().filter(|a| !a.is_hide_set()) {
            assert!(
                argument.get_help().is_some()
                    || matches!(argument.get_id().as_str(), "help" | "version"),
                "{path} {} has no help",
                argument.get_id()
            );
        }
        for sub in command.get_subcommands() {
            check(sub, &format!("{path} {}", sub.get_name()));
        }
    }
    check(&Cli::command(), "warren");
}

#[test]
fn everything_after_the_image_belongs_to_the_guests_command() {
    let args = run(&["run", "--rm", "alpine", "ls", "-d", "--rm", "-o", "x"]);
    assert!(args.rm && !args.detach);
    assert_eq!(args.command(), ["ls", "-d", "--rm", "-o", "x"]);
    let args = run(&["run", "alpine", "-d", "-p", "80"]);
    assert!(!args.detach);
    assert_eq!(args.command(), ["-d", "-p", "80"]);
    let args = run(&["run", "alpine", "--", "x"]);
    assert_eq!(args.command().last().map(String::as_str), Some("x"));
}

#[test]
fn run_reads_its_options() {
    let args = run(&[
        "run",
        "-it",
        "-p",
        "8080:80",
        "-p",
        "53:53/udp",
        "-e",
        "A=1",
        "-e",
        "B",
        "--label",
        "tier=web",
        "--memory",
        "512M",
        "--disk",
        "2G",
        "--cpus",
        "4",
        "--restart",
        "on-failure:3",
        "--network",
        "none",
        "--pull",
        "never",
        "img",
    ]);
    assert!(args.interactive && args.tty);
    assert_eq!(args.publish.len(), 2);
    assert_eq!(
        args.env,
        [
            EnvWord::Set("A".into(), "1".into()),
            EnvWord::Inherit("B".into())
        ]
    );
    assert_eq!(args.memory.unwrap().mebibytes(), 512);
    assert_eq!(args.restart.unwrap().attempts, 3);
    assert_eq!(args.network, NetworkChoice::None);
    assert_eq!(args.pull, PullPolicy::Never);
}

#[test]
fn mistakes_are_refused_in_words() {
    for (words, needle) in [
        (&["run"][..], "IMAGE"),
        (&["run", "-p", "80", "img"], "HOST:GUEST"),
        (&["run", "--memory", "512", "img"], "512M"),
        (&["run", "--cpus", "0", "img"], "1..=256"),
        (&["run", "--restart", "maybe", "img"], "on-failure:N"),
        (&["run", "-e", "=x", "img"], "NAME=VALUE"),
        (&["exec"], "COMMAND"),
        (&["exec", "web"], "COMMAND"),
        (&["rm"], "NAME"),
        (&["ps", "--filter", "state=exploded"], "Running"),
        (&["frobnicate"], "frobnicate"),
        (&["context", "use"], "NAME"),
    ] {
        let error = parse(words).unwrap_err();
        assert_eq!(error.exit_code(), 2, "{words:?}");
        assert!(error.to_string().contains(needle), "{words:?}: {error}");
    }
}

#[test]
fn exec_takes_the_commands_own_options() {
    let Command::Exec(args) = parse(&["exec", "-it", "-u", "1", "web", "ls", "-t", "-i"])
        .unwrap()
        .command
    else {
        panic!("exec");
    };
    assert!(args.interactive && args.tty);
    assert_eq!(args.user.as_deref(), Some("1"));
    assert_eq!(args.command(), ["ls", "-t", "-i"]);
}

#[test]
fn options_of_every_command_are_taken_before_and_after_it() {
    for words in [
        &["-o", "json", "-q", "ps", "-a"][..],
        &["ps", "-aq", "-o", "json"],
    ] {
        let cli = parse(words).unwrap();
        assert_eq!(cli.global.output, Some(OutputFormat::Json));
        assert!(cli.global.quiet);
    }
    let Command::Ps(args) = parse(&["ps", "--filter", "state=running"]).unwrap().command else {
        panic!("ps");
    };
    assert_eq!(args.filters, [Filter::State(StateName::Running)]);
}
