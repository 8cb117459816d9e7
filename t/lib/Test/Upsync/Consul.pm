package Test::Upsync::Consul;

=head1 NAME

Test::Upsync::Consul - a real Consul agent for a test

=cut

use strict;
use warnings;

use File::Path qw(remove_tree);
use JSON::PP ();
use MIME::Base64;

use Test::Upsync::HTTP;
use Test::Upsync::Process;

=head1 METHODS

=head2 new(binary => FILE, dir => DIR, ports => [HTTP, SERVER, SERF], keep_data => BOOL)

Made by C<< $t->consul >>. Listens on 127.0.0.1 only. Its data is in memory, so that a restart
empties it, unless C<keep_data> is set.

=cut

sub new {
    my ($class, %opt) = @_;
    return bless { %opt, port => $opt{ports}[0] }, $class;
}

=head2 run

Starts the agent and waits until it has a leader and answers writes.

=cut

sub run {
    my $self = shift;
    $self->start;
    return $self if wait_until { $self->ready } 30;
    die "Consul did not start:\n" . `tail -20 '$self->{dir}/consul.log'`;
}

sub start {
    my $self = shift;
    my ($http, $server, $serf) = @{ $self->{ports} };
    my %conf = (
        ports => { http => $http, server => $server, serf_lan => $serf,
            serf_wan => -1, dns => -1, grpc => -1 },
        bind_addr => '127.0.0.1', client_addr => '127.0.0.1', node_name => 'test',
        disable_update_check => JSON::PP::true, log_level => 'warn',
        performance => { raft_multiplier => 1 },
    );
    open my $file, '>', "$self->{dir}/consul.json" or die "$self->{dir}/consul.json: $!\n";
    print $file JSON::PP::encode_json(\%conf);
    close $file;

    my @mode = $self->{keep_data}
        ? ('-server', '-bootstrap-expect=1', "-data-dir=$self->{dir}/data") : '-dev';
    $self->{process} = Test::Upsync::Process->spawn(output => "$self->{dir}/consul.log",
        command => [$self->{binary}, 'agent', @mode, "-config-file=$self->{dir}/consul.json"]);
    return $self;
}

sub ready {
    my $self = shift;
    my $leader = http_get($self->{port}, '/v1/status/leader', timeout => 1);
    return 0 unless $leader->{status} == 200 && $leader->{body} =~ /\d/;
    return $self->put('/v1/kv/ready', '')->{status} == 200
        && $self->delete('/v1/kv/ready')->{status} == 200
        && $self->get('/v1/health/node/test')->{body} =~ /serfHealth/;
}

=head2 stop(SIGNAL), restart(%opt), pause, resume

Stops the agent (TERM); starts it again on the same ports, C<< wipe => 1 >> without the data
that C<keep_data> kept; SIGSTOP and SIGCONT.

=cut

sub stop {
    my ($self, $signal) = @_;
    my $process = delete $self->{process} or return 1;
    return $process->stop($signal // 'TERM', 10);
}

sub restart {
    my ($self, %opt) = @_;
    $self->stop;
    remove_tree("$self->{dir}/data") if $opt{wipe};
    return $self->run;
}

sub pause { return $_[0]{process}->pause }

sub resume { return $_[0]{process}->signal('CONT') }

=head2 address, port

Where its HTTP interface is: C<127.0.0.1:PORT>, and PORT.

=cut

sub address { return "127.0.0.1:$_[0]{port}" }

sub port { return $_[0]{port} }

=head2 get(PATH), put(PATH, BODY), delete(PATH)

Requests to the HTTP interface. BODY is sent as it is, or as JSON if it is a reference.

=cut

sub get { my ($self, $path) = @_; return http('GET', $self->{port}, $path) }

sub put {
    my ($self, $path, $body) = @_;
    return http('PUT', $self->{port}, $path, body => _text($body), timeout => 30);
}

sub delete { my ($self, $path) = @_; return http('DELETE', $self->{port}, $path) }

sub _text {
    my $value = shift // '';
    return ref $value ? JSON::PP->new->canonical->encode($value) : $value;
}

sub _must {
    my ($what, $answer) = @_;
    return $answer if $answer->{status} == 200;
    die "Consul: $what: $answer->{status} $answer->{body}" . ($answer->{error} // '') . "\n";
}

=head2 kv_put(KEY, VALUE), kv_get(KEY), kv_delete(KEY, recurse => 1)

VALUE is text, or a reference that is sent as JSON. kv_get returns undef if there is no KEY.
All die if Consul refuses.

=cut

sub kv_put {
    my ($self, $key, $value) = @_;
    return _must("put $key", $self->put("/v1/kv/$key", $value));
}

sub kv_get {
    my ($self, $key) = @_;
    my $answer = $self->get("/v1/kv/$key?raw");
    return if $answer->{status} == 404;
    return _must("get $key", $answer)->{body};
}

sub kv_delete {
    my ($self, $key, %opt) = @_;
    return _must("delete $key", $self->delete("/v1/kv/$key" . ($opt{recurse} ? '?recurse' : '')));
}

=head2 kv_put_many({ KEY => VALUE, ... })

Puts many keys, 64 in each transaction.

=cut

sub kv_put_many {
    my ($self, $values) = @_;
    my @keys = sort keys %$values;
    while (my @some = splice @keys, 0, 64) {
        my @operations = map {
            { KV => { Verb => 'set', Key => $_, Value => encode_base64(_text($values->{$_}), '') } }
        } @some;
        _must('transaction', $self->put('/v1/txn', \@operations));
    }
    return;
}

=head2 register_service(Name => ..., %fields), deregister_service(ID), set_check(ID, STATUS)

Registers a service with the agent, fields as in Consul's own interface (C<ID>, C<Address>,
C<Port>, C<Tags>, C<Weights>, C<Check>); STATUS of a TTL check is C<pass>, C<warn> or C<fail>.

=cut

sub register_service {
    my ($self, %service) = @_;
    return _must('register', $self->put('/v1/agent/service/register', \%service));
}

sub deregister_service {
    my ($self, $id) = @_;
    return _must("deregister $id", $self->put("/v1/agent/service/deregister/$id"));
}

sub set_check {
    my ($self, $id, $status) = @_;
    return _must("check $id", $self->put("/v1/agent/check/$status/$id"));
}

1;
