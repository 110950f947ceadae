#include <trtprune/trtprune.h>

#include "c_api/boundary.hpp"
#include "c_api/settings.hpp"

using namespace trtprune;
using namespace trtprune::c_api;

extern "C" {

int32_t trtprune_image_from_file(const char* path, const trtprune_image_options* options, trtprune_image** image,
                                 trtprune_error** error) {
    return guarded(error, [&] {
        trtprune_image*& place = output(image, "image");
        Image read = Image::from_file(text(path, "path"), image_options(options));
        place = handle(std::make_shared<ImageObject>(ImageObject{std::move(read)}));
    });
}

int32_t trtprune_image_from_memory(const void* data, size_t size, const trtprune_image_options* options,
                                   trtprune_image** image, trtprune_error** error) {
    return guarded(error, [&] {
        trtprune_image*& place = output(image, "image");
        if (data == nullptr) throw InputError("data=NULL");
        Image read = Image::from_memory(data, size, image_options(options));
        place = handle(std::make_shared<ImageObject>(ImageObject{std::move(read)}));
    });
}

int32_t trtprune_image_from_rgb(const uint8_t* data, int64_t width, int64_t height, int64_t stride,
                                trtprune_image** image, trtprune_error** error) {
    return guarded(error, [&] {
        trtprune_image*& place = output(image, "image");
        Image copy = Image::from_rgb(data, width, height, stride);
        place = handle(std::make_shared<ImageObject>(ImageObject{std::move(copy)}));
    });
}

int64_t trtprune_image_width(const trtprune_image* image) {
    const auto known = object_or_none<ImageObject>(image);
    return known ? known->image.width() : -1;
}

int64_t trtprune_image_height(const trtprune_image* image) {
    const auto known = object_or_none<ImageObject>(image);
    return known ? known->image.height() : -1;
}

const uint8_t* trtprune_image_data(const trtprune_image* image) {
    const auto known = object_or_none<ImageObject>(image);
    return known ? known->image.data() : nullptr;
}

int32_t trtprune_image_free(trtprune_image* image) {
    return release<ImageObject>(image);
}

}  // extern "C"
