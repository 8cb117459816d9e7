/*
 * Bit-fields of a request. bindgen misplaces them in nginx 1.30, where they begin in the middle of
 * a word; see tools/bit-fields.
 */

#include <ngx_config.h>
#include <ngx_core.h>
#include <ngx_http.h>

ngx_uint_t
upsync_header_only(const ngx_http_request_t *r)
{
    return r->header_only;
}
