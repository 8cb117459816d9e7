package Test::Upsync::Process;

=head1 NAME

Test::Upsync::Process - a child process that a test starts, signals and ends

=cut

use strict;
use warnings;

use POSIX qw(WNOHANG);
use Time::HiRes qw(sleep time);

=head1 METHODS

=head2 spawn(command => [...], output => FILE)

Starts the command, its output appended to FILE, and returns the process.
C<code> in place of C<command> is a sub to run in a forked perl.

=cut

sub spawn {
    my ($class, %opt) = @_;

    my $pid = fork() // die "fork: $!\n";
    if ($pid == 0) {
        $SIG{$_} = 'DEFAULT' for qw(INT TERM HUP PIPE CHLD);
        _end_with_parent();
        open STDIN, '<', '/dev/null';
        open STDOUT, '>>', $opt{output} and open STDERR, '>&', \*STDOUT;
        if ($opt{code}) {
            eval { $opt{code}->(); 1 } or print STDERR $@;
        } else {
            no warnings 'exec';
            exec { $opt{command}[0] } @{ $opt{command} } or print STDERR "exec $opt{command}[0]: $!\n";
        }
        # No END blocks or destructors of the test in its child.
        STDERR->flush;
        STDOUT->flush;
        POSIX::_exit(111);
    }
    return bless { %opt, pid => $pid, parent => $$ }, $class;
}

# Not even a test that is killed leaves its processes behind: prctl(PR_SET_PDEATHSIG, SIGTERM),
# which Perl knows only by number.
sub _end_with_parent {
    my $prctl = { x86_64 => 157, aarch64 => 167 }->{ (POSIX::uname())[4] };
    syscall $prctl, 1, 15 if $prctl;
    return;
}

=head2 pid, alive, signal(NAME)

The process id; whether it runs; sends it a signal.

=cut

sub pid { $_[0]{pid} }

sub alive {
    my $self = shift;
    return 0 unless $self->{pid};
    return 1 if waitpid($self->{pid}, WNOHANG) == 0;
    $self->{status} //= $?;
    $self->{pid} = 0;
    return 0;
}

sub signal {
    my ($self, $signal) = @_;
    return $self->alive && kill $signal, $self->{pid};
}

=head2 pause

Stops the process with SIGSTOP, and waits until each of its threads stands still.

=cut

sub pause {
    my $self = shift;
    $self->signal('STOP');
    my $deadline = time + 5;
    while (grep { !/\) [Tt] / } _thread_stats($self->{pid})) {
        return 0 if time > $deadline;
        sleep 0.001;
    }
    return 1;
}

sub _thread_stats {
    my $pid = shift;
    my @stats;
    for my $path (glob "/proc/$pid/task/*/stat") {
        open my $file, '<', $path or next;
        push @stats, scalar <$file> // next;
    }
    return @stats;
}

=head2 wait(SECONDS)

Waits until the process has ended; false if it runs on.

=cut

sub wait {
    my ($self, $seconds) = @_;
    my $deadline = time + $seconds;
    while ($self->alive) {
        return 0 if time > $deadline;
        sleep 0.005;
    }
    return 1;
}

=head2 stop(SIGNAL, SECONDS)

Sends SIGNAL (TERM), waits up to SECONDS (10), then kills. True if no kill was needed.

=cut

sub stop {
    my ($self, $signal, $seconds) = @_;
    $self->signal($signal // 'TERM');
    $self->signal('CONT');
    return 1 if $self->wait($seconds // 10);
    $self->signal('KILL');
    $self->wait(5);
    return 0;
}

# A test that dies leaves no process behind; its forked children end none of their parent's.
sub DESTROY {
    my $self = shift;
    local ($?, $!, $@);
    $self->stop('KILL') if $self->{parent} && $self->{parent} == $$ && $self->{pid};
}

1;
