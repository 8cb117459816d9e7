#!/usr/bin/perl

# The page of upsync_status in a browser: what it shows as servers come, die and leave, that nothing
# of it can be made to run what a name says, and that it is quick, legible and usable by keys.

use strict;
use warnings;
use utf8;

use Digest::SHA qw(sha256_base64);
use JSON::PP ();
use Test::More;

use lib 't/lib';
use Test::Upsync;
use Test::Upsync::Chromium;

binmode Test::More->builder->$_, ':encoding(UTF-8)' for qw(output failure_output todo_output);

my $number = $ENV{TEST_SERVERS} // 1000;
my $pictures = 'objs/screenshots';

my $t = Test::Upsync->new;
my ($first, $second) = $t->backends(2)->addresses;
my $mortal = $t->backends(1);
my $fake = $t->fake_consul;
my ($third) = $mortal->addresses;

# What nginx.conf lets a name be.
my @hostile = ('<img src=x onerror=alert(1)>', q{</script><script>alert('2')</script>}, q{" onclick="alert(3)});
my $hostile = join '', map {
    my $name = s/(["\\])/\\$1/gr;
    "upstream \"$name\" { server $first; check interval=1000 rise=1 fall=1 timeout=1000 type=tcp; }\n";
} @hostile;

$t->write_file_expand('nginx.conf', <<"EOF");
%%TEST_GLOBALS%%
worker_processes 2;
events {}
http {
    %%TEST_GLOBALS_HTTP%%
    $hostile
    upstream followed {
        upsync %%CONSUL%%/v1/kv/followed/ upsync_type=consul upsync_interval=20ms;
    }
    server {
        listen 127.0.0.1:%%PORT_0%%;
        location / { proxy_pass http://\$host; }
        location = /status { upsync_status html; }
    }
    server {
        listen 127.0.0.1:%%PORT_1%%;
        location / { dyups_interface; }
    }
}
EOF
$fake->reply_kv(5, { "followed/$second" => {} }, path => '/v1/kv/followed/');
$t->run;

my $address = 'http://127.0.0.1:' . $t->port(0) . '/status';
my $check = 'check interval=100 rise=1 fall=1 timeout=1000 type=http;';
my $chromium = Test::Upsync::Chromium->new($t);
my $page;

sub post {
    my ($name, @servers) = @_;
    my $answer = http('POST', $t->port(1), "/upstream/$name", body => join '', map { "$_\n" } @servers);
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is($answer->{status}, 200, "a list of $name is posted");
}

# A text as JavaScript writes it.
sub quoted { return JSON::PP->new->allow_nonref->ascii->encode($_[0]) }

# The row of a server: its attributes and the texts of its cells. Nothing if there is none.
sub row {
    my ($upstream, $server) = @_;
    return $page->eval(<<"JS");
{
    const blocks = [...document.querySelectorAll('[data-upstream]')];
    const block = blocks.find(each => each.dataset.upstream === ${\ quoted($upstream) });
    const rows = [...block?.querySelectorAll('tr[data-server]') ?? []];
    const row = rows.find(each => each.dataset.server === ${\ quoted($server) });
    if (!row) return null;
    const cells = [...row.querySelectorAll('[data-cell]')];
    return { ...row.dataset, hidden: row.hidden || block.hidden, text: row.innerText,
        cells: Object.fromEntries(cells.map(each => [each.dataset.cell, each.textContent])),
        color: getComputedStyle(row).backgroundColor,
        line: row.querySelector('polyline').points.length };
}
JS
}

# The facts over the servers of an upstream, by their names.
sub facts {
    my $upstream = shift;
    return $page->eval(<<"JS");
{
    const blocks = [...document.querySelectorAll('[data-upstream]')];
    const block = blocks.find(each => each.dataset.upstream === ${\ quoted($upstream) });
    const facts = [...block?.querySelectorAll('dl > div') ?? []];
    return Object.fromEntries(facts.map(each => [...each.children].map(part => part.textContent)));
}
JS
}

sub state_of { return (row(@_) // { state => 'none' })->{state} }

sub waits_for {
    my ($upstream, $server, $state, $name) = @_;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return wait_until { state_of($upstream, $server) eq $state } 20, $name;
}

sub text_of { return $page->eval("document.querySelector(${\ quoted($_[0]) }).textContent") }

# The page as it is, but with more refreshes than it offers; until its address or controls change.
sub hurry { $page->eval('{ wanted.every = 0.2; plan(); }') }

# "UPSTREAM SERVER" of the rows that the filter leaves.
sub rows_left {
    return join ', ', @{ $page->eval(<<'JS') };
[...document.querySelectorAll('tr[data-server]')].filter(row => row.checkVisibility())
    .map(row => `${row.closest('[data-upstream]').dataset.upstream} ${row.dataset.server}`)
JS
}

sub is_quiet {
    my $name = shift;
    local $Test::Builder::Level = $Test::Builder::Level + 1;
    return is(join("\n", $page->complaints), '', "$name: no error, nothing that the policy forbids");
}

subtest 'a document and a policy that fits it' => sub {
    my $answer = http_get($t->port(0), '/status');
    is($answer->{status}, 200, 'status');
    like($answer->{headers}{'content-type'}, qr{^text/html}, 'type');
    cmp_ok(length $answer->{body}, '<', 65536, 'length');
    my ($style, $script) = map { $answer->{body} =~ m{<$_>(.*)</$_>}s } qw(style script);
    my ($style_hash, $script_hash) = map { sha256_base64($_) . '=' } $style, $script;
    is($answer->{headers}{'content-security-policy'}, "default-src 'none'; script-src 'sha256-$script_hash'; "
        . "style-src 'sha256-$style_hash'; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        . "frame-ancestors 'none'", 'policy');
    my $json = http_get($t->port(0), '/status?format=json');
    is(ref eval { json($json->{body}) }, 'HASH', 'what it shows is there as JSON');
};

post('app', "server $first weight=5;", "server $third;", $check);
$page = $chromium->page("$address#every=1");

subtest 'servers appear' => sub {
    waits_for('app', $first, 'up', 'one that was there before');
    waits_for('app', $third, 'up', 'and the other');
    is(state_of('app', $second), 'none', 'none that is in no list');
    $page->eval('globalThis.isTheSame = true');
    post('app', "server $first weight=5;", "server $second backup max_conns=7;", "server $third;", $check);
    waits_for('app', $second, 'up', 'one that joins the list');
    my $cells = row('app', $second)->{cells};
    is($cells->{address}, $second, 'its address');
    like($cells->{parameters}, qr/^weight=1 max_conns=7 .*backup$/, 'its parameters');
    is($cells->{limit}, 'of 7', 'its limit');
    wait_until { row('app', $second)->{cells}{checked} eq '✔ ok' } 10, 'its check';
    like(row('app', $first)->{cells}{parameters}, qr/^weight=5 /, 'the others stay');
    is_quiet('appearing');
};

subtest 'facts of an upstream' => sub {
    my $facts = facts('app');
    is($facts->{Source}, 'api', 'a list that was posted');
    like($facts->{Version}, qr/^2, /, 'and replaced');
    is($facts->{Check}, 'http every 100 ms, rise 1, fall 1', 'its check');
    waits_for('followed', $second, 'up', 'an upstream that follows Consul');
    $facts = facts('followed');
    is($facts->{Source}, 'consul', 'its source');
    is($facts->{Follows}, $fake->address . '/v1/kv/followed/', 'where that is');
    like($facts->{Answers}, qr/, index 5$/, 'its last answer');
    like($facts->{Changes}, qr/^\d+ applied, 0 refused$/, 'and all that came of them');
    $fake->stop;
    wait_until { (facts('followed')->{Fails} // '') =~ /^⚠ .*, (?:just now|\S+ s ago)$/ } 20, 'its failure';
    is(state_of('followed', $second), 'up', 'which takes no server away');
};

subtest 'requests are counted and drawn' => sub {
    wait_until {
        http_get($t->port(0), '/', host => 'app');
        my $cells = row('app', $first)->{cells};
        $cells->{requests} > 10 && $cells->{'2xx'} > 10 && $cells->{rate} =~ /^[1-9]/;
    } 20, 'requests, responses, and requests a second';
    # Only that which is seen is drawn.
    $page->eval(q{document.querySelector('[data-upstream=app]').scrollIntoView()});
    wait_until { row('app', $first)->{line} > 1 } 10, 'a line is drawn';
    my $row = row('app', $first);
    like($row->{cells}{received}, qr/^[1-9].* (?:B|KiB)$/, 'bytes');
    like($row->{cells}{response}, qr/^(?:< )?\d+ ms$/, 'time');
};

subtest 'a server that is killed goes red, and comes back' => sub {
    my $white = row('app', $third)->{color};
    my $before = row('app', $third)->{cells};
    is("$before->{sign} $before->{state}", '▲ up', 'it is up by sign and word');
    $mortal->stop('TERM');
    waits_for('app', $third, 'down', 'down');
    my $row = row('app', $third);
    is("$row->{cells}{sign} $row->{cells}{state}", '▼ down', 'by sign and word');
    isnt($row->{color}, $white, 'and colour');
    like($row->{cells}{reasons}, qr/^check: connect refused$/m, 'and why');
    is($row->{cells}{checked}, '✖ connect refused', 'as the check found it');
    is(state_of('app', $first), 'up', 'the others are up');
    like(text_of('#status'), qr/ 1 down$/, 'the line of the page says so');
    is($page->eval('document.title'), '1 out – Upstreams', 'so does its title');
    # A phone is where such a page is looked at, and at night.
    $page->look(width => 390, height => 844, phone => 1, scale => 2);
    $page->eval(q{document.querySelector('[data-state=down]').scrollIntoView({ block: 'center' })});
    my @pictures = $page->screenshot("$pictures/status-phone.png");
    $page->look(width => 1360, height => 1280, dark => 1);
    $page->eval('scrollTo(0, 0)');
    push @pictures, $page->screenshot("$pictures/status-dark.png");
    $page->look(width => 1360, height => 1280);
    push @pictures, $page->screenshot("$pictures/status.png");
    diag("pictures: @pictures");
    $mortal->run;
    waits_for('app', $third, 'up', 'up again');
    is(row('app', $third)->{color}, $white, 'as before');
    is_quiet('going and coming');
};

subtest 'servers and upstreams that are removed disappear' => sub {
    hurry();
    post('app', "server $first weight=5;", "server $second;", $check);
    waits_for('app', $third, 'none', 'a server');
    waits_for('app', $first, 'up', 'not the others');
    post('other', "server $second;");
    waits_for('other', $second, 'up', 'an upstream joins');
    is(http('DELETE', $t->port(1), '/upstream/other')->{status}, 200, 'is deleted');
    wait_until { !$page->eval(q{document.querySelector('[data-upstream="other"]')}) } 20, 'and disappears';
    is($page->eval('globalThis.isTheSame'), JSON::PP::true, 'all that without a reload of the page');
};

subtest 'names are texts, whatever they look like' => sub {
    for my $name (@hostile) {
        waits_for($name, $first, 'up', $name);
        my $title = "[...document.querySelectorAll('h2')].find(each => each.textContent === ${\ quoted($name) })";
        ok($page->eval("$title && !$title.children.length && $title.checkVisibility()"), 'is seen as it is written');
    }
    my $made = q{document.querySelectorAll('img, main script, [onclick], [onerror], [style]').length};
    is($page->eval($made), 0, 'nothing is made of them');
    is($page->eval('document.scripts.length'), 1, 'no script joined');
    is(scalar $page->events('Page.javascriptDialogOpening'), 0, 'nothing ran');
    is_quiet('names');
};

subtest 'the filter, by keys' => sub {
    $page->go("$address#every=1&filter=" . 'no%20such');
    wait_until { rows_left() eq '' } 10, 'the address of the page sets it';
    is(text_of('#nothing'), 'Nothing matches the filter.', 'and the page says that nothing is left');
    $page->go("$address#every=1");
    wait_until { rows_left() =~ /\bapp \Q$second\E/ } 10, 'all are there';

    $page->eval('document.activeElement.blur()');
    $page->press('Tab');
    is($page->eval('document.activeElement.id'), 'filter', 'Tab comes to it first');
    $page->type(" APP  $second ");
    is(rows_left(), "app $second", 'words of upstream and server');
    like(text_of('#status'), qr/; 1 shown$/, 'counted');
    like($page->eval('location.hash'), qr/^#filter=.*app/i, 'the address of the page has it');
    $page->reload;
    wait_until { rows_left() eq "app $second" } 10, 'it survives a reload';

    $page->eval('document.querySelector("#filter").select()');
    $page->type('app');
    is(rows_left(), "app $first, app $second", 'another one');
    $page->press('Tab');
    is($page->eval('document.activeElement.id'), 'only-out', 'Tab comes to the next');
    $page->press('Space');
    is(rows_left(), '', 'only servers that are out: none');
    post('app', "server $first weight=5 down;", "server $second;", $check);
    wait_until { rows_left() eq "app $first" } 10, 'one';
    like(row('app', $first)->{cells}{reasons}, qr/^operator: down$/m, 'and why');
    post('app', "server $first weight=5;", "server $second drain;", $check);
    wait_until { rows_left() eq "app $second" } 10, 'another one';
    is(row('app', $second)->{cells}{sign}, '◆', 'which is draining');
    $page->go($address);
    wait_until { rows_left() =~ /app \Q$first\E/ } 10, 'none is set';
    is_quiet('filter');
};

subtest 'requests for news: one at a time, none in the dark' => sub {
    $page->go("$address?upstream=app&format=html#every=1");
    waits_for('app', $first, 'up', 'shown');
    is(state_of($hostile[0], $first), 'none', 'one upstream alone');
    my ($asked) = grep { /format=json/ } $page->requests;
    like($asked, qr{/status\?upstream=app&format=json$}, 'other arguments are kept');

    $page->command('Fetch.enable', { patterns => [ { urlPattern => '*format=json*' } ] });
    wait_until { () = $page->events('Fetch.requestPaused') } 10, 'one is held';
    is($page->eval(<<'JS'), 0, 'no other begins');
{
    let others = 0;
    const real = globalThis.fetch;
    globalThis.fetch = (...all) => { others++; return real(...all); };
    for (let i = 0; i < 5; i++) document.querySelector('#now').click();
    return others;
}
JS
    $page->eval('Object.defineProperty(document, "hidden", { value: true, configurable: true })');
    $page->command('Fetch.disable');
    wait_until { !$page->eval('asking') } 10, 'it is answered';
    my $number = () = $page->requests;
    select undef, undef, undef, 1.5;
    is(scalar(() = $page->requests), $number, 'no other follows while the page is not seen');
    $page->eval('{ delete document.hidden; document.dispatchEvent(new Event("visibilitychange")); }');
    wait_until { $number < (() = $page->requests) } 10, 'it goes on when it is';
    is_quiet('requests');
};

subtest 'no answer' => sub {
    hurry();
    my %offline = (latency => 0, downloadThroughput => -1, uploadThroughput => -1);
    $page->command('Network.emulateNetworkConditions', { %offline, offline => JSON::PP::true });
    wait_until { text_of('#status') =~ /^✖ No answer since \S+.*: the connection failed$/ } 20, 'is told';
    is(state_of('app', $first), 'up', 'what was known is still shown');
    ok($page->eval('document.querySelector("#status").checkVisibility()'), 'the line is seen');
    is($page->eval('document.querySelector("#status").ariaLive'), 'polite', 'and heard');
    $page->command('Network.emulateNetworkConditions', { %offline, offline => JSON::PP::false });
    wait_until { text_of('#status') =~ /^2 servers: / } 20, 'and that it is over';
    is(join("\n", grep { !/ERR_INTERNET_DISCONNECTED/ } $page->complaints), '', 'no other error');
};

# Texts whose contrast is less than WCAG 2.2 wants (1.4.3), as "RATIO TEXT".
my $contrast = <<'JS';
{
    const channels = color => color.match(/[\d.]+/g).map(Number);
    const ground = element => {
        for (; element; element = element.parentElement) {
            const color = getComputedStyle(element).backgroundColor;
            if ((channels(color)[3] ?? 1) === 1) return color;
        }
        return 'rgb(255, 255, 255)';
    };
    const light = color => channels(color).slice(0, 3)
        .map(each => each / 255).map(each => each <= .04045 ? each / 12.92 : ((each + .055) / 1.055) ** 2.4)
        .reduce((sum, each, place) => sum + each * [.2126, .7152, .0722][place], 0);
    const ratio = (a, b) => (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    const poor = [];
    let number = 0;
    while (texts.nextNode()) {
        const text = texts.currentNode.data.trim(), element = texts.currentNode.parentElement;
        if (!text || !element.checkVisibility({ contentVisibilityAuto: false })) continue;
        number++;
        const found = ratio(light(getComputedStyle(element).color), light(ground(element)));
        if (found < 4.5) poor.push(`${found.toFixed(2)} ${text}`);
    }
    return { number, poor };
}
JS

subtest 'legible by day and night, on a desk and on a phone' => sub {
    my $dead = '127.0.0.1:' . $t->free_port;
    post('app', "server $first weight=5;", "server $second drain;", "server $dead;", $check);
    $page->go("$address#every=1");
    waits_for('app', $second, 'draining', 'a server of each state');
    waits_for('app', $dead, 'down', 'and one that is down');
    for my $dark (0, 1) {
        $page->look(dark => $dark);
        my $found = $page->eval($contrast);
        cmp_ok($found->{number}, '>', 100, "$found->{number} texts");
        is(join("\n", @{ $found->{poor} }), '', 'contrast ' . ($dark ? 'in the dark' : 'in the light'));
    }
    for my $width (320, 390, 768, 1024, 1280, 1920) {
        $page->look(width => $width, phone => $width < 500);
        is($page->eval('document.documentElement.scrollWidth'), $width, "no sideways scrolling at $width");
    }
    is($page->eval(q{document.querySelectorAll('th:not([scope])').length}), 0, 'headers of tables have a scope');
    $page->look(width => 1360, height => 900);
    is_quiet('looks');
};

# A refresh with other counters, in milliseconds: until it is laid out. Nodes that it touched.
my $refresh = <<'JS';
{
    wanted.every = 0;
    plan();
    while (asking) await new Promise(done => setTimeout(done, 10));
    const status = await (await fetch(jsonAddress())).json();
    let now = Date.parse(status.now);
    const servers = status.upstreams.find(({ name }) => name === 'big').servers;
    const changes = { all: servers, one: servers.slice(0, 1), none: [] };
    const touched = { all: 0, one: 0, none: 0 };
    const times = [];
    const observer = new MutationObserver(() => {});
    observer.observe(document.querySelector('[data-upstream=big] tbody'),
        { subtree: true, childList: true, characterData: true });
    for (let round = 0; round < 20; round++) {
        for (const which of ['all', 'one', 'none']) {
            // The moment goes on only when all changes: rates would change with it.
            if (which === 'all') now += 2000;
            for (const server of changes[which]) {
                const more = 1 + Math.floor(Math.random() * 90);
                server.connections = (server.connections + 1) % 10;
                server.requests += more;
                server.failures += more > 80 ? 1 : 0;
                server.responses['2xx'] += more;
                server.sent += more * 500;
                server.received += more * 50_000;
                server.header_time_ms = more;
                server.response_time_ms = more + 1;
            }
            status.now = new Date(now).toISOString();
            observer.takeRecords();
            const start = performance.now();
            show(status);
            document.body.getBoundingClientRect();
            if (which === 'all') times.push(performance.now() - start);
            touched[which] = new Set(observer.takeRecords().map(record => record.target.closest?.('tr') ?? null)).size;
        }
        await new Promise(requestAnimationFrame);
    }
    return { times, touched, rows: servers.length };
}
JS

subtest "$number servers" => sub {
    post('big', map { sprintf 'server 127.1.%d.%d:9;', $_ >> 8, $_ & 255 } 1 .. $number);
    wait_until { $number == $page->eval(q{document.querySelectorAll('[data-upstream=big] tr[data-server]').length}) }
        30, 'are shown';
    $page->eval('globalThis.rowsBefore = [...document.querySelectorAll("tr[data-server]")]');
    # The measure of one refresh is replaced by that of the next.
    my %live;
    my $last = q{performance.getEntriesByName('show', 'measure').at(-1)};
    wait_until {
        $page->eval('document.querySelector("#now").click()');
        $live{ $page->eval("$last.startTime") } = $page->eval("$last.duration");
        keys %live > 5;
    } 30, 'refreshed';
    is($page->eval('rowsBefore.filter(row => !row.isConnected).length'), 0, 'rows are used again');
    my $found = $page->eval($refresh);
    my @times = sort { $a <=> $b } @{ $found->{times} };
    diag(sprintf 'refresh of %d servers: as they are %.1f ms; with all counters changed, and laid out, '
        . 'median %.1f ms, %.1f to %.1f ms', $number, (sort { $a <=> $b } values %live)[2], $times[ @times / 2 ],
        @times[ 0, -1 ]);
    # Some 20 ms on an idle machine; what is out of sight costs no layout.
    cmp_ok($times[0], '<', 500, 'the quickest is quick');
    is_deeply($found->{touched}, { all => $number, one => 1, none => 0 }, 'only rows that change are touched');
    is_quiet('many');

    hurry();
    is(http('DELETE', $t->port(1), '/upstream/big')->{status}, 200, 'deleted');
    wait_until { !$page->eval(q{document.querySelectorAll('[data-upstream=big]').length}) } 30, 'and gone';
};

is_quiet('at the end');
$chromium->stop;
$t->done;
