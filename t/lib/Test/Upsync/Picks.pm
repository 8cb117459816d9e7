package Test::Upsync::Picks;

=head1 NAME

Test::Upsync::Picks - who served the requests of a load, held against the lists that were in force

=head1 SYNOPSIS

    my $picks = Test::Upsync::Picks->new($t->testdir . '/picks.log');
    # nginx.conf: log_format picks '%%PICKS%%'; access_log picks.log picks;
    $picks->change([ '127.0.0.1:8080', ... ], sub { post the list; true if it is in force });
    wait_until { $picks->served('/a')->{'127.0.0.1:8080'} } 10;
    is(join("\n", $picks->wrong), '', 'no failed request, none to a server that has left');

The log may hold requests that began before a change and ended after it, and those that were tried
again meanwhile: a request may go to the servers of all lists from the one that was in force when it
began on. It may go to no server that had left before.

=cut

use strict;
use warnings;

use Fcntl qw(SEEK_CUR);
use List::Util qw(min);
use Time::HiRes qw(time);

=head1 METHODS

=head2 format

The text of nginx's C<log_format>. The servers tell their address in the header C<X-Server>.

=cut

sub format { return '$msec $request_time $status $uri $upstream_http_x_server $upstream_addr' }

=head2 new(FILE)

The log, which is written without a buffer. It need not be there yet.

=cut

sub new {
    my ($class, $path) = @_;
    return bless { path => $path, lists => [], stops => [], wrong => [], rest => '', requests => 0, retried => 0 }, $class;
}

=head2 change([ADDRESS, ...], CODE)

Runs CODE, after which only these servers may get requests that begin then. Returns what CODE
returns. C<served> and C<tried> start anew.

=cut

sub change {
    my ($self, $servers, $code) = @_;
    $self->read;
    my $list = { servers => { map { $_ => 1 } @$servers }, since => 'inf' };
    push @{ $self->{lists} }, $list;
    my $result = $code->();
    $list->{since} = time;
    @$self{qw(served tried begun)} = ({}, {}, 0);
    return $result;
}

=head2 served(WAY), tried(WAY), begun

Since the last change, of requests that began after it: how often each server served, or was tried,
for URIs that begin with C</WAY>; the number of such requests.

=cut

sub served { my ($self, $way) = @_; $self->read; return $self->{served}{$way} // {} }

sub tried { my ($self, $way) = @_; $self->read; return $self->{tried}{$way} // {} }

sub begun { my $self = shift; $self->read; return $self->{begun} }

=head2 stop(CODE)

Runs CODE, which ends the load: requests that it drops then have not failed. Returns what CODE
returns.

=cut

sub stop {
    my ($self, $code) = @_;
    my $span = [ time, 'inf' ];
    push @{ $self->{stops} }, $span;
    my @result = $code->();
    $span->[1] = time;
    return wantarray ? @result : $result[0];
}

=head2 wrong, requests, retried

What must not have been since C<wrong> was last asked for, in words, 20 at most; all requests; those
among them that were tried more than once.

=cut

sub wrong { my $self = shift; $self->read; return splice @{ $self->{wrong} } }

sub requests { return $_[0]{requests} }

sub retried { return $_[0]{retried} }

=head2 read

Takes in what was logged meanwhile.

=cut

sub read {
    my $self = shift;
    unless ($self->{log}) {
        open my $log, '<:raw', $self->{path} or return;
        $self->{log} = $log;
    }
    # No further than it is long now: a fast load might never let this end.
    my $left = (-s $self->{log}) - sysseek $self->{log}, 0, SEEK_CUR;
    while ($left > 0) {
        my $read = sysread $self->{log}, $self->{rest}, min($left, 1 << 20), length $self->{rest} or last;
        $left -= $read;
        my $end = rindex $self->{rest}, "\n";
        next if $end < 0;
        $self->_judge($_) for split /\n/, substr $self->{rest}, 0, $end + 1, '';
    }
    return;
}

sub _judge {
    my ($self, $line) = @_;
    my ($end, $took, $status, $uri, $server, @tried) = split /[ ,]+/, $line;
    my ($way) = $uri =~ m{^/(\w+)};
    # nginx's clock stands still within a turn of its event loop: a request begins at this time or
    # later, never before.
    my $begin = $end - $took;
    my $lists = $self->{lists};
    return unless @$lists;
    my $first = $#$lists;
    $first-- while $first > 0 && $lists->[$first]{since} > $begin;

    $self->{requests}++;
    $self->{retried}++ if @tried > 1;
    my @strangers = grep {
        my $address = $_;
        $address ne '-' && !grep { $lists->[$_]{servers}{$address} } $first .. $#$lists;
    } @tried;
    $self->_wrong("to @strangers, which had left: $line") if @strangers;
    return if $status == 499 && grep { $end > $_->[0] - 1 && $end < $_->[1] + 1 } @{ $self->{stops} };
    $self->_wrong("failed: $line") if $status != 200;
    $self->_wrong("$server answered for $tried[-1]: $line") if $server ne $tried[-1];

    return unless $lists->[-1]{since} <= $begin;
    $self->{begun}++;
    $self->{served}{$way}{$server}++;
    $self->{tried}{$way}{$_}++ for @tried;
    return;
}

sub _wrong {
    my ($self, $what) = @_;
    push @{ $self->{wrong} }, $what if @{ $self->{wrong} } < 20;
    return;
}

1;
