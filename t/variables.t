#!/usr/bin/perl

# A key of `hash` that was posted has variables of nginx.conf. One that is gone after a reload is told,
# and what is left of the key goes on.

use strict;
use warnings;

use Test::More;

use lib 't/lib';
use Test::Upsync;

my $t = Test::Upsync->new;
my @servers = $t->backends(2)->addresses;

sub configure {
    my $map = shift;
    $t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    $map
    upstream app { server 127.0.0.1:1 down; }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location / { proxy_pass http://app; }
        location /upstreams/ { dyups_interface; }
    }
}
EOF
}

sub who { return { map { http_get($t->port(0), '/?k=1')->{body} => 1 } 1 .. 12 } }

my $map = 'map $arg_k $color { default red; 1 green; }';
configure($map);
$t->run;
my $body = join '', 'hash $color;', map { "server $_;" } @servers;
is(http('POST', $t->port(0), '/upstreams/upstream/app', body => $body)->{status}, 200, 'posted');
is(keys %{ who() }, 1, 'a key has its server');

configure('');
ok($t->reload, 'without the map');
my $told = qr/\[error\] \S+ upsync: upstream "app": unknown variable "\$color" in "hash" of the posted list, it is empty$/m;
$t->log_like($told, 'is told');
$t->nginx->expect_log($told);
wait_until { keys %{ who() } == 2 } 5, 'an empty key goes round robin';
is(() = $t->log =~ /$told/g, 1, 'once');

configure($map);
ok($t->reload, 'with it again');
wait_until { keys %{ who() } == 1 } 5, 'the key has a server again';
$t->done;
