//! Help, and what is said of malformed arguments. The help of every command is docs/cli.md, which `cargo xtask check`
//! compares with the program.

use std::process::Command;

use crate::{shown, snapshot};

fn sees(arguments: &str) -> String {
    let mut command = Command::new(env!("CARGO_BIN_EXE_mvm"));
    command.env_clear().env("COLUMNS", "110").args(arguments.split_whitespace());
    shown(&command.output().expect("mvm runs"))
}

#[test]
fn help_names_every_command() {
    snapshot!(sees(""), @"
    Runs fleets of Firecracker microVMs for many tenants

    Usage: mvm [OPTIONS] <COMMAND>

    Commands:
      demo         Show what mvm does, with real packets, in a throw-away root and network namespace
      run          Run a command in a microVM of its own, which is gone afterwards
      status       Show what runs on this node
      doctor       Look for settings of this host that hurt
      events       Show what happened, on all tenants
      tenant       Tenants: isolation, quotas, audit
      pool         Pools: what to run, and how
      image        Guest images: what a pool can start from
      instance     Instances: one microVM each
      net          The tenants' networks in the kernel
      node         This node: limits, recovery, cleaning up
      vmm          Installed versions of Firecracker
      completions  Print a completion script for a shell
      man          Print the manual page, or write one page per command into a folder
      help         Print this message or the help of the given subcommand(s)

    Options:
      -h, --help     Print help
      -V, --version  Print version

    Options of every command:
          --root <DIR>  The folder that holds all state [default: MVM_ROOT, else /var/lib/mvm]
          --json        Print JSON
      -q, --quiet       Print only what was asked for and errors
      -v, --verbose     Print more: the steps of a start and their times
          --no-color    No colours
    [exit 2]
    ");
    snapshot!(sees("--version"), @"mvm 0.1.0");
    snapshot!(sees("instance --help"), @"
    Instances: one microVM each

    Usage: mvm instance [OPTIONS] <COMMAND>

    Commands:
      create   Make an instance: a name, an address, a data disk; it does not run yet
      list     List instances, of a tenant, of a pool, or of all
      info     Show an instance
      why      Say why an instance is in the state it is in, and what can be done
      start    Boot an instance
      stop     Shut an instance down; after the pool's time for that it is killed
      warm     Pause an instance: it keeps its memory and does nothing
      resume   Let a warm instance go on
      sleep    Put an instance to sleep: its memory goes to disk, its VMM goes
      wake     Wake an instance: its guest goes on where it was
      archive  Compress what a sleeping instance takes on the disk; its next wake takes longer
      wait     Wait until an instance is in a state
      exec     Run a command in a guest; its exit code is this one's
      cp       Copy files to a guest, or from it
      ssh      Log in to a guest: this process becomes ssh
      logs     Show what a guest's workload printed; without an agent, what its VMM wrote
      console  Show what a guest printed, and type on its console
      stats    Show what instances use; of one also what its guest says
      disk     An instance's data disk
      destroy  Destroy an instance, in any state
      help     Print this message or the help of the given subcommand(s)

    Options:
      -h, --help  Print help

    Options of every command:
          --root <DIR>  The folder that holds all state [default: MVM_ROOT, else /var/lib/mvm]
          --json        Print JSON
      -q, --quiet       Print only what was asked for and errors
      -v, --verbose     Print more: the steps of a start and their times
          --no-color    No colours
    ");
    snapshot!(sees("pool create --help"), @"
    Make a pool

    Usage: mvm pool create [OPTIONS] <POOL>

    Arguments:
      <POOL>
              TENANT/POOL

    Options:
          --flake <REF>
              What is built: a flake reference

          --image <NAME>
              The guest image that becomes the pool's first revision, as `mvm image list` names it

          --profile <NAME>
              The flake's profile
              
              [default: minimal]

          --cpus <N>
              vCPUs of an instance, 1 to 32
              
              [default: 1]

          --mem <MIB>
              Memory of an instance, in MiB
              
              [default: 512]

          --data-disk <MIB>
              Virtual size of an instance's data disk, in MiB; 0: none
              
              [default: 1024]

          --agent <MODE>
              Whether guests run mvm's agent [default: the image's, else none]

              Possible values:
              - none:     It does not: it learns its address from the kernel's command line and is asked nothing
              - required: It does: guests start from one base snapshot, and each is told who it is

          --vmm <firecracker[@VERSION]|sim>
              The VMM, with a version or without
              
              [default: firecracker]

          --insecure
              Accept VMMs for which this machine has no jail, no limits or no seccomp filter

          --seccomp <POLICY>
              The seccomp filter of its VMMs: Firecracker's own, or a tighter one of mvm's; the simulated VMM has
              none

              Possible values:
              - baseline: Firecracker's own
              - strict:   A tighter one of mvm's
              
              [default: baseline]

          --egress <POLICY>
              Where guests may connect to: internet, open, deny, or allow:CIDR[:PORT],…
              
              [default: internet]

          --metadata <BOOL>
              Whether guests may ask their VMM about themselves, at 169.254.169.254
              
              [default: true]
              [possible values: true, false]

          --on-rotate <WHO>
              Who hears in guests that secrets have changed: none, signal:NAME (the workload), or exec:PATH (a
              program in the guest)
              
              [default: none]

          --label <KEY=VALUE>
              A label; may be given again

      -h, --help
              Print help (see a summary with '-h')

    Options of every command:
          --root <DIR>
              The folder that holds all state [default: MVM_ROOT, else /var/lib/mvm]

          --json
              Print JSON

      -q, --quiet
              Print only what was asked for and errors

      -v, --verbose
              Print more: the steps of a start and their times

          --no-color
              No colours
    ");
}

#[test]
fn malformed_arguments_are_refused_with_what_was_expected() {
    snapshot!(sees("nonsense"), @"
    error: unrecognized subcommand 'nonsense'

      tip: a similar subcommand exists: 'node'

    Usage: mvm [OPTIONS] <COMMAND>

    For more information, try '--help'.
    [exit 2]
    ");
    snapshot!(sees("tenant"), @"
    Tenants: isolation, quotas, audit

    Usage: mvm tenant [OPTIONS] <COMMAND>

    Commands:
      create   Make a tenant, with its bridge
      list     List tenants
      info     Show a tenant
      update   Change a tenant's quotas
      destroy  Destroy a tenant with its pools and instances
      secrets  A tenant's secrets: files in /run/secrets of its guests
      audit    Show a tenant's audit log
      help     Print this message or the help of the given subcommand(s)

    Options:
      -h, --help  Print help

    Options of every command:
          --root <DIR>  The folder that holds all state [default: MVM_ROOT, else /var/lib/mvm]
          --json        Print JSON
      -q, --quiet       Print only what was asked for and errors
      -v, --verbose     Print more: the steps of a start and their times
          --no-color    No colours
    [exit 2]
    ");
    snapshot!(sees("tenant create acme --net-id 4096 --subnet 10.240.3.0/24"), @r#"
    error: invalid value '4096' for '--net-id <N>': "4096" is not a net id: a number from 0 to 4095

    For more information, try '--help'.
    [exit 2]
    "#);
    snapshot!(sees("tenant create acme --net-id 3 --subnet 192.168.3.0/24"), @"
    error: invalid value '192.168.3.0/24' for '--subnet <CIDR>': 192.168.3.0/24 lies outside the cluster's network 10.240.0.0/12

    For more information, try '--help'.
    [exit 2]
    ");
    snapshot!(sees("tenant create acme --net-id 3 --subnet 192.168.3.0/24 --json"), @r#"
    {"error":{"code":"usage","what":"invalid value '192.168.3.0/24' for '--subnet <CIDR>': 192.168.3.0/24 lies outside the cluster's network 10.240.0.0/12","why":"","fix":"mvm tenant create --help"}}
    [exit 2]
    "#);
    snapshot!(sees("instance info acme --json"), @r#"
    {"error":{"code":"usage","what":"invalid value 'acme' for '<INSTANCE>': \"acme\" is not a path to an instance: expected tenant/pool/instance","why":"","fix":"mvm instance info --help"}}
    [exit 2]
    "#);
    snapshot!(sees("tenant create --json"), @r#"
    {"error":{"code":"usage","what":"the following required arguments were not provided: --net-id <N> --subnet <CIDR> <TENANT>","why":"","fix":"mvm tenant create --help"}}
    [exit 2]
    "#);
}

#[test]
fn completions_and_manual_are_made_from_the_same_source() {
    assert!(sees("completions bash").contains("_mvm()"));
    assert!(sees("man").contains(".TH mvm 1"));
    snapshot!(sees("completions tcl"), @"
    error: invalid value 'tcl' for '<SHELL>'
      [possible values: bash, elvish, fish, powershell, zsh]

    For more information, try '--help'.
    [exit 2]
    ");
}
