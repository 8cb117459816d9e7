package Test::Upsync::App;

=head1 NAME

Test::Upsync::App - a server that is one process, so that SIGKILL ends it at once and as a whole

=head1 SYNOPSIS

    my $app = Test::Upsync::App->new($t)->run;
    # nginx.conf: server %%APP%%, with $t->expand or by hand: $app->address
    $app->kill;
    $app->run;
    is($app->requests('GET', $since), 0, 'nobody came');

C</> is answered C<hello world by ADDRESS>, C</ping> C<pong by ADDRESS>, as by
L<Test::Upsync::Backends>; methods other than GET, HEAD and POST by 405.

=cut

use strict;
use warnings;

use IO::Select;
use IO::Socket::IP;
use List::Util qw(max);
use POSIX ();
use Time::HiRes qw(time);

use Test::Upsync::HTTP;
use Test::Upsync::Nginx;
use Test::Upsync::Process;

=head1 METHODS

=head2 new(TEST, address => ADDRESS, delay => SECONDS)

ADDRESS is C<IP:PORT>, by default a free port of 127.0.0.1. Each answer is late by the delay (0).

=cut

sub new {
    my ($class, $t, %opt) = @_;
    my $address = $opt{address} // '127.0.0.1:' . $t->free_port;
    my $files = $t->testdir . '/app-' . $address =~ tr/a-zA-Z0-9/-/cr;
    return bless { delay => 0, %opt, address => $address, log => "$files.log", output => "$files.out" }, $class;
}

=head2 run, kill(SIGNAL), alive

Starts it and waits until it answers; ends it by SIGKILL, or another signal; whether it runs.

=cut

sub run {
    my $self = shift;
    $self->{process} = Test::Upsync::Process->spawn(output => $self->{output}, code => sub { $self->_serve });
    my $answers = wait_until { !$self->alive || http_connect($self->{address})->{socket} } 10;
    die "no app on $self->{address}: " . Test::Upsync::Nginx::_slurp($self->{output}) . "\n" unless $answers && $self->alive;
    return $self;
}

sub kill {
    my ($self, $signal) = @_;
    $self->{process}->signal($signal // 'KILL');
    return $self->{process}->wait(10);
}

sub alive { my $self = shift; return $self->{process} && $self->{process}->alive }

sub address { return $_[0]{address} }

=head2 requests(METHOD, SINCE)

The times of the requests that came, of this method or all, since a time or ever.

=cut

sub requests {
    my ($self, $method, $since) = @_;
    my @times;
    for (split /\n/, Test::Upsync::Nginx::_slurp($self->{log})) {
        my ($time, $is) = split ' ';
        push @times, $time if $time >= ($since // 0) && (!defined $method || $is eq $method);
    }
    return @times;
}

sub _serve {
    my $self = shift;
    $SIG{PIPE} = 'IGNORE';
    my ($host, $port) = $self->{address} =~ /^(.+):(\d+)$/;
    my $listener = IO::Socket::IP->new(LocalHost => $host =~ tr/[]//dr, LocalPort => $port, Listen => 1024,
        ReuseAddr => 1) or die "listen on $self->{address}: $!\n";
    open my $log, '>>', $self->{log} or die "$self->{log}: $!\n";
    my $select = IO::Select->new($listener);
    my (%head, @due);
    for (;;) {
        for my $socket ($select->can_read(@due ? max(0, $due[0][0] - time) : undef)) {
            if ($socket == $listener) {
                my $new = $listener->accept or next;
                $head{$new} = '';
                $select->add($new);
            } elsif (!sysread $socket, $head{$socket}, 65536, length $head{$socket}) {
                _drop($select, \%head, $socket);
            } else {
                while ($head{$socket} =~ s/^(.*?)\r\n\r\n//s) {
                    my ($method, $uri, $version) = split ' ', $1;
                    syswrite $log, sprintf "%.3f %s %s\n", time, $method, $uri;
                    push @due, [ time + $self->{delay}, $socket, $self->_answer($method, $uri, $version, $1) ];
                }
            }
        }
        while (@due && $due[0][0] <= time) {
            my (undef, $socket, $text, $is_kept) = @{ shift @due };
            next unless exists $head{$socket};
            syswrite $socket, $text;
            _drop($select, \%head, $socket) unless $is_kept;
        }
    }
}

sub _drop {
    my ($select, $head, $socket) = @_;
    $select->remove($socket);
    delete $head->{$socket};
    close $socket;
    return;
}

sub _answer {
    my ($self, $method, $uri, $version, $head) = @_;
    my $body = ($uri eq '/ping' ? 'pong' : 'hello world') . " by $self->{address}\n";
    my $is_kept = $version eq 'HTTP/1.1' ? $head !~ /^Connection: *close/mi : $head =~ /^Connection: *keep-alive/mi;
    my $status = $method =~ /^(?:GET|HEAD|POST)$/ ? '200 OK' : '405 Method Not Allowed';
    my $text = "HTTP/1.1 $status\r\nContent-Type: text/plain\r\nContent-Length: " . length($body) . "\r\nConnection: "
        . ($is_kept ? 'keep-alive' : 'close') . "\r\n\r\n" . ($method eq 'HEAD' ? '' : $body);
    return ($text, $is_kept);
}

1;
