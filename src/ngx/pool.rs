//! Rust values that live as long as an nginx pool.

use std::ffi::c_void;
use std::ptr::NonNull;

use nginx_sys::{ngx_palloc, ngx_pnalloc, ngx_pool_cleanup_add, ngx_pool_t};

use super::boundary::guarded;

/// Moves `value` into a pool, where it is dropped when the pool is destroyed. Gives nothing,
/// and drops the value at once, if there is no memory.
///
/// # Safety
///
/// `pool` is a pool of nginx.
#[inline]
pub unsafe fn place<T>(pool: *mut ngx_pool_t, value: T) -> Option<NonNull<T>> {
    const { assert!(align_of::<T>() <= 16, "nginx's pools align to 16 bytes at most") };
    // SAFETY: the caller gives a pool.
    let cleanup = unsafe { ngx_pool_cleanup_add(pool, size_of::<T>().max(1)).as_mut()? };
    let place = NonNull::new(cleanup.data.cast::<T>())?;
    // SAFETY: nginx gave so many bytes, aligned as pools are, and nobody else knows them.
    unsafe { place.write(value) };
    cleanup.handler = Some(drop_placed::<T>);
    Some(place)
}

/// The values of a type that [`place`] moved into a pool, the last one first.
///
/// # Safety
///
/// `pool` is a pool of nginx that outlives the result, of which nothing is dropped meanwhile.
pub unsafe fn placed<'a, T: 'a>(pool: *mut ngx_pool_t) -> impl Iterator<Item = &'a T> {
    // SAFETY: the caller's word; nginx keeps what is to be cleaned up in a list.
    let first = unsafe { (*pool).cleanup };
    let all = std::iter::successors(NonNull::new(first), |last| {
        // SAFETY: as above.
        NonNull::new(unsafe { (*last.as_ptr()).next })
    });
    let ours: Cleanup = drop_placed::<T>;
    all.filter_map(move |cleanup| {
        // SAFETY: what has this handler is a `T` that `place` has written.
        unsafe {
            let is_ours =
                (*cleanup.as_ptr()).handler.is_some_and(|h| std::ptr::fn_addr_eq(h, ours));
            is_ours.then(|| &*(*cleanup.as_ptr()).data.cast::<T>())
        }
    })
}

type Cleanup = unsafe extern "C" fn(*mut c_void);

unsafe extern "C" fn drop_placed<T>(data: *mut c_void) {
    // SAFETY: `place` gave nginx a `T` with this handler, and nginx calls it once.
    guarded((), || unsafe { data.cast::<T>().drop_in_place() });
}

/// Copies a plain value into a pool.
///
/// # Safety
///
/// `pool` is a pool of nginx.
pub unsafe fn copy<T: Copy>(pool: *mut ngx_pool_t, value: T) -> Option<NonNull<T>> {
    const { assert!(align_of::<T>() <= 16, "nginx's pools align to 16 bytes at most") };
    // SAFETY: the caller gives a pool.
    let place = NonNull::new(unsafe { ngx_palloc(pool, size_of::<T>().max(1)) }.cast::<T>())?;
    // SAFETY: nginx gave so many bytes, and nobody else knows them.
    unsafe { place.write(value) };
    Some(place)
}

/// Copies bytes into a pool.
///
/// # Safety
///
/// `pool` is a pool of nginx.
pub unsafe fn copy_bytes(pool: *mut ngx_pool_t, bytes: &[u8]) -> Option<NonNull<u8>> {
    // SAFETY: the caller gives a pool.
    let place = NonNull::new(unsafe { ngx_pnalloc(pool, bytes.len().max(1)) }.cast::<u8>())?;
    // SAFETY: nginx gave so many bytes, and nobody else knows them.
    unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), place.as_ptr(), bytes.len()) };
    Some(place)
}
