package Test::Upsync::FakeConsul;

=head1 NAME

Test::Upsync::FakeConsul - an HTTP server that gives the answers a real Consul cannot be made to

=cut

use strict;
use warnings;

use IO::Select;
use IO::Socket::INET;
use JSON::PP ();
use MIME::Base64;
use POSIX ();
use Socket qw(SOL_SOCKET SO_LINGER);
use Storable qw(store retrieve);
use Time::HiRes qw(sleep time);

use Test::Upsync::HTTP;
use Test::Upsync::Process;

=head1 METHODS

=head2 new(dir => DIR, port => PORT)

Made by C<< $t->fake_consul >>. Until told otherwise it answers 404, as Consul does for a key
that is not there.

=cut

sub new {
    my ($class, %opt) = @_;
    my $self = bless { replies => {}, %opt }, $class;
    $self->reply(status => 404, index => 1);
    return $self;
}

=head2 reply(%reply)

What is answered from now on, to requests whose path begins with C<path>, or to all. Each reply
replaces the one for the same C<path>; the longest path that fits counts. A reply is

    status, reason, body       200, 'OK', ''
    headers => [NAME => VALUE, ...]
    index                      sent as X-Consul-Index; a query that has this index waits for
                               another reply, or for the end of its own wait
    chunked => SIZE            the body in chunks of that size
    raw                        these bytes in place of all the above
    truncate => LENGTH         only so much of the answer, then the end of the connection
    delay => SECONDS           before the answer
    pace => [LENGTH, SECONDS]  the answer in pieces of that length, and the pause between them
    end => 'keep'|'close'|'reset'|'hang'

C<end> says what becomes of the connection; it is kept, but for C<truncate> and C<raw>: closed.

=cut

sub reply {
    my ($self, %reply) = @_;
    $self->{replies}{ $reply{path} // '' } = \%reply;
    store($self->{replies}, "$self->{dir}/replies.new") or die "replies: $!\n";
    rename "$self->{dir}/replies.new", "$self->{dir}/replies" or die "replies: $!\n";
    return $self;
}

=head2 reply_kv(INDEX, { KEY => VALUE }, %reply)

Answers with these keys, as Consul's KV interface does. VALUE may be a reference, sent as JSON.

=cut

sub reply_kv {
    my ($self, $index, $values, %reply) = @_;
    my $json = JSON::PP->new->canonical;
    my @entries = map {
        my $value = ref $values->{$_} ? $json->encode($values->{$_}) : $values->{$_};
        {
            Key => $_, Flags => 0, LockIndex => 0, CreateIndex => $index, ModifyIndex => $index,
            Value => defined $value ? encode_base64($value, '') : undef,
        };
    } sort keys %$values;
    return $self->reply(index => $index, body => $json->encode(\@entries),
        headers => ['Content-Type' => 'application/json'], %reply);
}

=head2 run, stop

Starts; stops, so that connections are refused.

=cut

sub run {
    my $self = shift;
    my $listener = IO::Socket::INET->new(LocalAddr => '127.0.0.1', LocalPort => $self->{port},
        Listen => 128, ReuseAddr => 1) or die "fake Consul: $!\n";
    $self->{process} = Test::Upsync::Process->spawn(
        output => "$self->{dir}/fake.log", code => sub { $self->_serve($listener) });
    return $self;
}

sub stop {
    my $self = shift;
    my $process = delete $self->{process} or return 1;
    return $process->stop('TERM', 5);
}

sub address { return "127.0.0.1:$_[0]{port}" }

sub port { return $_[0]{port} }

=head2 requests(SINCE)

The requests that came, since a time or all: hashes of C<time>, C<method>, C<uri>, C<headers>
(names in lower case), C<connection> (a number).

=cut

sub requests {
    my ($self, $since) = @_;
    open my $log, '<', "$self->{dir}/requests" or return;
    my @requests = map { JSON::PP::decode_json($_) } grep { /\n$/ } <$log>;
    return grep { !$since || $_->{time} >= $since } @requests;
}

# The rest runs in the server's process, and in a child of it for each connection.

sub _serve {
    my ($self, $listener) = @_;
    local $SIG{CHLD} = 'IGNORE';
    local $SIG{PIPE} = 'IGNORE';
    setpgrp;
    local $SIG{TERM} = sub {
        $SIG{TERM} = 'IGNORE';
        kill 'TERM', -$$;
        POSIX::_exit(0);
    };
    my $waiting = IO::Select->new($listener);
    for (my $number = 1; ; $number++) {
        # perl puts a TERM off that comes just before accept(), so it is not left to wait there.
        until ($waiting->can_read(0.1)) { }
        my $client = $listener->accept or next;
        my $pid = fork() // die "fork: $!\n";
        next if $pid;
        $SIG{TERM} = 'DEFAULT';
        close $listener;
        $self->_connection($client, $number);
        POSIX::_exit(0);
    }
}

sub _connection {
    my ($self, $client, $number) = @_;
    my $buffer = '';
    while (defined(my $request = _request($client, \$buffer))) {
        $self->_log($request, $number);
        my $reply = $self->_choose($client, $request) or return;
        return unless $self->_answer($client, $request, $reply);
    }
    return;
}

sub _request {
    my ($client, $buffer) = @_;
    my $end;
    while (($end = index $$buffer, "\r\n\r\n") < 0) {
        sysread $client, $$buffer, 8192, length $$buffer or return;
    }
    my ($line, @headers) = split /\r\n/, substr $$buffer, 0, $end + 4, '';
    my ($method, $uri) = split ' ', $line;
    my %headers = map { /^([^:]+):\s*(.*)/ ? (lc $1 => $2) : () } @headers;
    return { time => time, method => $method, uri => $uri, headers => \%headers };
}

sub _log {
    my ($self, $request, $number) = @_;
    open my $log, '>>', "$self->{dir}/requests" or die "requests: $!\n";
    # One write for each line, as several connections append.
    syswrite $log, JSON::PP::encode_json({ %$request, connection => $number }) . "\n";
    return;
}

# The reply that is in force; a blocking query waits for one with another index.
sub _choose {
    my ($self, $client, $request) = @_;
    my ($asked) = $request->{uri} =~ /[?&]index=(\d+)/;
    my ($wait, $unit) = $request->{uri} =~ /[?&]wait=(\d+)(ms|s|m)?/;
    $wait = ($wait // 300) * { ms => 0.001, s => 1, m => 60 }->{ $unit // 's' };
    my $deadline = time + $wait;
    my $reply;
    while (1) {
        $reply = $self->_reply($request->{uri});
        last unless $asked && defined $reply->{index} && $reply->{index} == $asked;
        last if time > $deadline;
        # Readable while nothing is asked: the client has gone.
        return if IO::Select->new($client)->can_read(0.005);
    }
    return $reply;
}

sub _reply {
    my ($self, $uri) = @_;
    my $replies = retrieve("$self->{dir}/replies");
    my ($path) = sort { length $b <=> length $a } grep { index($uri, $_) == 0 } keys %$replies;
    return $replies->{$path};
}

# True if the connection is kept for another request.
sub _answer {
    my ($self, $client, $request, $reply) = @_;
    sleep $reply->{delay} if $reply->{delay};
    my $bytes = $reply->{raw} // _bytes($reply);
    $bytes = substr $bytes, 0, $reply->{truncate} if defined $reply->{truncate};
    my ($length, $pause) = @{ $reply->{pace} // [length $bytes || 1, 0] };
    while (length $bytes) {
        my $piece = substr $bytes, 0, $length, '';
        _write($client, $piece) or return 0;
        sleep $pause if $pause && length $bytes;
    }
    my $whole = !defined $reply->{raw} && !defined $reply->{truncate};
    my $end = $reply->{end} // ($whole ? 'keep' : 'close');
    sleep 3600 if $end eq 'hang';
    setsockopt $client, SOL_SOCKET, SO_LINGER, pack('ii', 1, 0) if $end eq 'reset';
    return $end eq 'keep';
}

sub _write {
    my ($client, $bytes) = @_;
    while (length $bytes) {
        my $sent = syswrite $client, $bytes or return 0;
        substr $bytes, 0, $sent, '';
    }
    return 1;
}

sub _bytes {
    my $reply = shift;
    my $status = $reply->{status} // 200;
    my $body = $reply->{body} // '';
    my @headers = @{ $reply->{headers} // [] };
    push @headers, 'X-Consul-Index' => $reply->{index} if defined $reply->{index};
    if ($reply->{chunked}) {
        push @headers, 'Transfer-Encoding' => 'chunked';
        $body =~ s/(.{1,$reply->{chunked}})/sprintf "%x\r\n%s\r\n", length $1, $1/gse;
        $body .= "0\r\n\r\n";
    } else {
        push @headers, 'Content-Length' => length $body;
    }
    my $head = "HTTP/1.1 $status " . ($reply->{reason} // 'OK') . "\r\n";
    while (my ($name, $value) = splice @headers, 0, 2) {
        $head .= "$name: $value\r\n";
    }
    return "$head\r\n$body";
}

1;
